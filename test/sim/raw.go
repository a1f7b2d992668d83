// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"crypto/x509"
	"os"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Raw is a client that sends what it is told to, without a library between.
type Raw struct {
	*Stranger
	space *os.File
}

// Raw returns one whose network namespace is Space(name).
func (m *Mesh) Raw(name string) *Raw {
	m.t.Helper()
	return &Raw{m.Stranger(name), m.Space(name)}
}

// Message is a first Request for a service, as it should be.
func (r *Raw) Message(service string) *networkservice.NetworkServiceRequest {
	r.mesh.t.Helper()
	url, err := rpc.InodeURL(r.space)
	if err != nil {
		r.mesh.t.Fatal(err)
	}
	return &networkservice.NetworkServiceRequest{
		Connection: &networkservice.Connection{
			Id: r.name + "-0", NetworkService: service,
			Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: r.name, Id: r.name + "-0"}}},
		},
		MechanismPreferences: []*networkservice.Mechanism{
			hop.MechanismMessage(mechanism.Kernel{NetNS: url, Name: "nsm-1"}.With(mechanism.Mechanism{})),
		},
	}
}

// rawTimeout bounds a call of a Raw, in the bubble's time.
const rawTimeout = 15 * time.Second

// Request sends a request to a URL, with the namespace's descriptor.
func (r *Raw) Request(url string, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	return r.RequestWith(url, req, r.space)
}

// RequestWith sends a request with other descriptors.
func (r *Raw) RequestWith(url string, req *networkservice.NetworkServiceRequest, files ...*os.File) (*networkservice.Connection, error) {
	ctx, cancel := context.WithTimeout(r.mesh.t.Context(), rawTimeout)
	defer cancel()
	return networkservice.NewNetworkServiceClient(r.dial(url)).Request(rpc.WithFiles(ctx, files...), req)
}

// requestWithToken sends a request with a token that one likes, "" for none.
func (r *Raw) requestWithToken(url string, req *networkservice.NetworkServiceRequest, token string, expires time.Time) error {
	p := *r.part
	p.tokens = nil
	if token != "" {
		p.tokens = func(*x509.Certificate) (string, time.Time, error) { return token, expires, nil }
	}
	_, err := (&Raw{&Stranger{&p}, r.space}).Request(url, req)
	return err
}

// Close closes a connection as it is.
func (r *Raw) Close(url string, c *networkservice.Connection) error {
	ctx, cancel := context.WithTimeout(r.mesh.t.Context(), rawTimeout)
	defer cancel()
	_, err := networkservice.NewNetworkServiceClient(r.dial(url)).Close(ctx, c)
	return err
}

// Again is the request that refreshes what was answered.
func Again(req *networkservice.NetworkServiceRequest, got *networkservice.Connection) *networkservice.NetworkServiceRequest {
	return &networkservice.NetworkServiceRequest{
		Connection:           proto.Clone(got).(*networkservice.Connection),
		MechanismPreferences: req.GetMechanismPreferences(),
	}
}

// At is the connection c as the hop at the given place of its path sends it on.
func At(c *networkservice.Connection, index int) *networkservice.Connection {
	c = proto.Clone(c).(*networkservice.Connection)
	c.Path.Index = uint32(index)
	c.Id = c.Path.PathSegments[index].Id
	return c
}

// Forge returns a token that says what one likes, signed with the stranger's key.
func (s *Stranger) Forge(subject, audience string, expires time.Time) string {
	s.mesh.t.Helper()
	svid, _ := s.identity.GetX509SVID()
	claims := jwt.RegisteredClaims{Subject: subject, Audience: jwt.ClaimStrings{audience}, ExpiresAt: jwt.NewNumericDate(expires)}
	raw, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(svid.PrivateKey)
	if err != nil {
		s.mesh.t.Fatal(err)
	}
	return raw
}

// Watch follows the connections that somebody shows this stranger until the test
// ends.
func (s *Stranger) Watch(url string, selector *networkservice.MonitorScopeSelector) *Watcher {
	s.mesh.t.Helper()
	ctx, cancel := context.WithCancel(s.mesh.t.Context())
	w := &Watcher{}
	stream, err := networkservice.NewMonitorConnectionClient(s.dial(url)).MonitorConnections(ctx, selector)
	if err != nil {
		cancel()
		s.mesh.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.events = append(w.events, e)
			w.mu.Unlock()
		}
	})
	s.mesh.t.Cleanup(func() { cancel(); reading.Wait() })
	return w
}

// Watcher collects events.
type Watcher struct {
	mu     sync.Mutex
	events []*networkservice.ConnectionEvent // guarded by mu
}

// Take returns what has come since the last time.
func (w *Watcher) Take() []*networkservice.ConnectionEvent {
	Settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.events
	w.events = nil
	return out
}

// Kinds is Take as text: the event's type and the states of its connections.
func (w *Watcher) Kinds() (kinds []string) {
	for _, e := range w.Take() {
		text := e.GetType().String()
		for _, c := range e.GetConnections() {
			text += " " + c.GetState().String()
		}
		kinds = append(kinds, text)
	}
	return kinds
}
