// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// RegistryURL is where the domain's registry listens.
const RegistryURL = "tcp://registry:5002"

// TokenLifetime is that of every part: the reference's.
const TokenLifetime = token.DefaultLifetime

// Mesh is one domain.
type Mesh struct {
	relays  sync.Map // IDs that may send Requests of others
	Network *Network

	// Userspace: WireGuard is wireguard-go's on nodes to come, so that wires between two
	// share a tunnel. Else it is the kernel's.
	Userspace bool

	t         testing.TB
	authority *authority
	log       *slog.Logger
	logs      *logbook
	heard     int // how much of it said has counted
	nodes     []*Node
	registry  *registryPart
	spaces    map[string]*os.File
	files     []*os.File
	skews     map[string]time.Duration // of clocks, by name of the part
	underlay  underlay
	places    int // in the gate of each manager that is started; 0 = as many as suit the machine
}

var userspace = flag.Bool("userspace", false, "WireGuard is wireguard-go's on all nodes, unless a test says otherwise")

// Run runs f in a bubble with a mesh that has a registry and no node yet.
// Whatever f starts is stopped afterwards.
func Run(t *testing.T, f func(t *testing.T, m *Mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		t.Cleanup(func() {
			m.stop()
			if t.Failed() {
				t.Logf("log of the mesh:\n%s", m.logs.String())
			}
		})
		m.StartRegistry()
		f(t, m)
	})
}

func newMesh(t testing.TB) *Mesh {
	log := &logbook{}
	return &Mesh{
		Network: newNetwork(), Userspace: *userspace, logs: log, t: t, authority: newAuthority(t), spaces: make(map[string]*os.File), underlay: underlay{holes: make(map[*Node]bool)}, skews: make(map[string]time.Duration),
		log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// logbook keeps what is logged.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logbook) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = bytes.Buffer{}
}

func (l *logbook) String() string {
	const most = 40 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.buf.String()
	return text[max(0, len(text)-most):]
}

func (m *Mesh) stop() {
	for _, n := range m.nodes {
		n.stop()
	}
	m.StopRegistry()
	// Descriptors that were sent to whoever did not want them live on for 10 s.
	time.Sleep(time.Minute)
	for _, f := range m.files {
		_ = f.Close()
	}
	for _, f := range m.spaces {
		_ = f.Close()
	}
}

// Space returns the network namespace of a workload: always the same for the
// same name.
func (m *Mesh) Space(name string) *os.File {
	m.t.Helper()
	f, ok := m.spaces[name]
	if !ok {
		var err error
		if f, err = netns.New(); err != nil {
			m.t.Fatal(err)
		}
		m.spaces[name] = f
	}
	return f
}

// SpaceKey returns the key of Space(name) in the kernels of the mesh.
func (m *Mesh) SpaceKey(name string) string {
	m.t.Helper()
	key, err := netns.Key(m.Space(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// file makes an open file with an inode of its own, to stand for a socket.
func (m *Mesh) file() *os.File {
	m.t.Helper()
	f, err := os.CreateTemp(m.t.TempDir(), "socket")
	if err != nil {
		m.t.Fatal(err)
	}
	m.files = append(m.files, f)
	return f
}

// mark returns a function that closes the files that are opened after mark.
func (m *Mesh) mark() (closeNew func()) {
	files, spaces := len(m.files), maps.Clone(m.spaces)
	return func() {
		for _, f := range m.files[files:] {
			_ = f.Close()
		}
		m.files = m.files[:files]
		for name, f := range m.spaces {
			if spaces[name] == nil {
				_ = f.Close()
				delete(m.spaces, name)
			}
		}
	}
}

// part is what every part of the mesh has: an identity, and a way to others.
type part struct {
	mesh     *Mesh
	name     string // of its path segments
	who      string // of its identity
	identity *identity
	tokens   token.Generator
	sockets  *rpc.Sockets
	peers    *peer.Pool
	policy   hop.Policy
	log      *slog.Logger
	skew     time.Duration // of its clock

	url   string
	local *rpc.Local // nil while the part listens nowhere
	serve []func(grpc.ServiceRegistrar)
}

// newPart makes a part with a fresh identity of that name.
func (m *Mesh) newPart(name string) *part { return m.newPartAs(name, name) }

// newPartAs makes a part whose identity has another name.
func (m *Mesh) newPartAs(name, who string) *part {
	p := &part{
		mesh: m, name: name, who: who, identity: &identity{svid: m.authority.issue(m.t, who)},
		sockets: rpc.NewSockets(),
		policy:  hop.Strict{Observers: []string{ID("observer")}},
		log:     m.log.With("at", name),
	}
	p.tokens = token.NewGenerator(p.identity, TokenLifetime)
	p.setClock(m.skews[name])
	p.peers = peer.NewPool(peer.PoolConfig{Name: name, Logger: p.log, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		return p.dial(url), nil, nil
	}})
	return p
}

// Rotate gives the part another SVID with another key for the same identity.
func (p *part) Rotate() { p.identity.set(p.mesh.authority.issue(p.mesh.t, p.who)) }

func (p *part) dial(url string) grpc.ClientConnInterface { return &link{from: p, url: url} }

// listen serves what register registers at url.
func (p *part) listen(url string, register ...func(grpc.ServiceRegistrar)) {
	p.url, p.serve = url, register
	p.resume()
}

// resume listens again after hangUp: the part has forgotten nothing.
func (p *part) resume() {
	p.local = rpc.NewLocal(rpc.LocalOptions{Identity: p.identity.local, Logger: p.log})
	for _, r := range p.serve {
		r(p.local)
	}
	p.mesh.Network.listen(p.url, p.name, p.local, p.skew)
}

// hangUp stops listening. Calls being served are cancelled, as when a process
// dies.
func (p *part) hangUp() {
	if p.local == nil {
		return
	}
	p.mesh.Network.leave(p.url, p.local)
	p.local.Close()
	p.local = nil
}

// Stranger is a part with a valid SVID that belongs to no node.
func (m *Mesh) Stranger(name string) *Stranger {
	s := &Stranger{m.newPart(name)}
	m.t.Cleanup(s.peers.Close)
	return s
}

// Stranger can call anybody.
type Stranger struct{ *part }

// Dial returns a connection to a URL.
func (s *Stranger) Dial(url string) grpc.ClientConnInterface { return s.dial(url) }

// registryPart is the domain's registry.
type registryPart struct {
	*part
	server    *registry.Server
	services  registry.Store[*api.NetworkService]
	endpoints registry.Store[*api.NetworkServiceEndpoint]
}

// StartRegistry starts a registry that knows nothing.
func (m *Mesh) StartRegistry() {
	r := &registryPart{
		part:      m.newPart("registry"),
		services:  memory.New[*api.NetworkService](),
		endpoints: memory.New[*api.NetworkServiceEndpoint](),
	}
	r.server = registry.New(registry.Config{
		Name: "registry", Tokens: r.tokens, Policy: clockRegistryPolicy{registry.Strict{MaySpeakFor: func(caller, _ string) bool {
			return strings.HasPrefix(caller, ID("manager-"))
		}}, r.skew}, Services: r.services, Endpoints: r.endpoints, Logger: r.log,
	})
	r.listen(RegistryURL, r.server.Register)
	m.registry = r
}

// StopRegistry stops it. What it knew is lost.
func (m *Mesh) StopRegistry() {
	if m.registry == nil {
		return
	}
	m.registry.server.Close()
	m.registry.hangUp()
	m.registry.peers.Close()
	m.registry = nil
}

// Registered returns the names of all endpoints in the registry.
func (m *Mesh) Registered() (names []string) {
	m.t.Helper()
	for nse, err := range m.registry.endpoints.Find(context.Background(), &api.NetworkServiceEndpoint{}) {
		if err != nil {
			m.t.Fatal(err)
		}
		names = append(names, nse.Object.GetName())
	}
	slices.Sort(names)
	return names
}

// Apply creates or replaces a network service, as an operator would, through the
// manager of a node.
func (m *Mesh) Apply(n *Node, ns *api.NetworkService) {
	m.t.Helper()
	operator := m.Stranger("operator")
	ctx := regpath.Path{}.ToOutgoing(m.t.Context())
	if _, err := api.NewNetworkServiceRegistryClient(operator.dial(n.ManagerURL())).Register(ctx, ns); err != nil {
		m.t.Fatal(err)
	}
	synctest.Wait() // every manager has heard of it
}

// Settle lets everything happen that needs no time.
func Settle() { synctest.Wait() }

// Pass lets time pass.
func Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Leftovers lists what nodes and endpoints hold for wires. It is empty when no
// wire is left.
func (m *Mesh) Leftovers() (left []string) {
	note := func(n int, format string, args ...any) {
		if n != 0 {
			left = append(left, fmt.Sprintf("%d %s", n, fmt.Sprintf(format, args...)))
		}
	}
	for _, n := range m.nodes {
		note(n.Kernel.Links(), "links in the kernel of %s", n.Name)
		note(n.Kernel.Rules(), "rules in the kernel of %s", n.Name)
		if n.Manager != nil {
			note(n.Manager.Usage().Wires, "connections at %s", n.Manager.name)
			note(len(n.Manager.Monitor().Visible(ID("observer"))), "connections shown by %s", n.Manager.name)
			note(n.Manager.sockets.Len()-len(n.endpoints), "sockets without an endpoint at %s", n.Manager.name)
		}
		for _, f := range n.forwarders {
			u := f.Usage()
			note(u.Wires, "wires at %s", f.name)
			note(u.VNIs, "VNIs at %s", f.name)
			note(u.Ports, "ports at %s", f.name)
			note(len(f.Monitor().Visible(ID("observer"))), "wires shown by %s", f.name)
			note(len(f.namespaces.Keys())-1, "namespaces at %s", f.name) // its own
			note(f.sockets.Len(), "sockets at %s", f.name)
		}
		for _, e := range n.endpoints {
			note(e.Server.Len(), "connections at endpoint %s", e.name)
			note(len(e.Pool.Leases()), "leases at endpoint %s", e.name)
		}
	}
	return left
}

// CheckEmpty fails the test if a wire has left anything anywhere.
func (m *Mesh) CheckEmpty() {
	m.t.Helper()
	Pass(time.Second) // what a wire has left just now lingers (docs/adr/0006)
	for _, what := range m.Leftovers() {
		m.t.Errorf("left: %s", what)
	}
}

// mayRelay trusts the forwarders of the mesh, of whatever node, to send Requests
// of others.
func (m *Mesh) mayRelay(id string) bool {
	_, ok := m.relays.Load(id)
	return ok
}
