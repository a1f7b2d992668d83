// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/internal/lab"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	sdktoken "github.com/openvwire/nsm/sdk/token"
)

const (
	nobody = 65534

	// asNobody names the door that the test binary tries as a child of that user,
	// atManager and atRegistry where.
	asNobody   = "NSM_TEST_AS_NOBODY"
	atManager  = "NSM_CONNECT_TO" // as lab has it
	atRegistry = "NSM_TEST_REGISTRY"
)

// visitor is a workload of a user without rights, in its node's network namespace.
type visitor struct {
	source   identity.Source
	id       spiffeid.ID
	manager  grpc.ClientConnInterface
	registry grpc.ClientConnInterface
}

// doors are what takes more than an identity. Each fails with nserr.NotAllowed if it
// is closed.
var doors = map[string]func(ctx context.Context, v visitor) error{
	"forwarder": func(ctx context.Context, v visitor) error {
		c, nse := registry.NewNetworkServiceEndpointRegistryClient(v.manager), &registry.NetworkServiceEndpoint{
			Name: "mallory", Url: "tcp://127.0.0.1:1", NetworkServiceNames: []string{"forwarder"},
		}
		if _, err := c.Register(ctx, nse); err != nil {
			return err
		}
		_, err := c.Unregister(ctx, nse)
		return err
	},
	"request of another": func(ctx context.Context, v visitor) error {
		netns, err := os.Open("/proc/self/ns/net")
		if err != nil {
			return err
		}
		defer netns.Close()
		url, err := rpc.InodeURL(netns)
		if err != nil {
			return err
		}
		expires := time.Now().Add(time.Hour)
		root, err := v.forge(expires)
		if err != nil {
			return err
		}
		_, err = networkservice.NewNetworkServiceClient(v.manager).Request(rpc.WithFiles(ctx, netns), &networkservice.NetworkServiceRequest{
			Connection: &networkservice.Connection{Id: "m", NetworkService: "nowhere", Path: &networkservice.Path{
				Index: 1,
				PathSegments: []*networkservice.PathSegment{
					{Name: "root", Id: "r", Token: root, Expires: timestamppb.New(expires)},
					{Name: "mallory", Id: "m"},
				},
			}},
			MechanismPreferences: []*networkservice.Mechanism{
				hop.MechanismMessage(mechanism.Kernel{NetNS: url, Name: "nsm-8"}.With(mechanism.Mechanism{})),
			},
		})
		if errors.Is(err, nserr.UnknownService) {
			return nil // the manager has looked for it
		}
		return err
	},
	"registration of another": func(ctx context.Context, v visitor) error {
		root, err := v.forge(time.Now().Add(time.Hour))
		if err != nil {
			return err
		}
		p := regpath.Path{Index: 1, PathSegments: []regpath.Segment{{Token: root}, {Token: "mine"}}}
		c, ns := registry.NewNetworkServiceRegistryClient(v.registry), &registry.NetworkService{Name: "mallory", Payload: "IP"}
		if _, err := c.Register(p.ToOutgoing(ctx), ns); err != nil {
			return err
		}
		_, err = c.Unregister(p.ToOutgoing(ctx), ns)
		return err
	},
	"node's own namespace": func(ctx context.Context, v visitor) error {
		c, err := client.Open(ctx, client.Config{Name: "mallory", Manager: os.Getenv(atManager), Source: v.source,
			Liveness: client.Liveness{Disabled: true}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		_, err = c.Request(ctx, client.Request{Service: "db", Interface: "nsm-9"})
		return errors.Join(err, c.Close())
	},
	"tunnel of nodes": func(ctx context.Context, v visitor) error {
		half := mechanism.Shared{Key: mechanism.NewPrivateKey().Public(), Port: 51820, Node: 1, Wire: 1}
		offer := mechanism.VXLAN{Tunnel: mechanism.Tunnel{Src: netip.MustParseAddrPort("192.0.2.1:4789")}}.
			With(mechanism.Mechanism{}).WithShared(half, mechanism.Shared{})
		c := networkservice.NewNetworkServiceClient(v.manager)
		got, err := c.Request(ctx, &networkservice.NetworkServiceRequest{
			Connection: &networkservice.Connection{Id: "t", NetworkService: "db", Payload: mechanism.PayloadEthernet, Path: &networkservice.Path{
				PathSegments: []*networkservice.PathSegment{{Name: "mallory", Id: "t"}},
			}},
			MechanismPreferences: []*networkservice.Mechanism{hop.MechanismMessage(offer)},
		})
		if err != nil {
			return err
		}
		if !hop.MechanismOf(got.GetMechanism()).IsShared() {
			err = nserr.NotAllowed.Errorf("the wire has a device of its own")
		}
		_, closed := c.Close(ctx, got)
		return errors.Join(err, closed)
	},
	"profile of the manager":  func(ctx context.Context, v visitor) error { return v.profile(ctx, v.manager) },
	"profile of the registry": func(ctx context.Context, v visitor) error { return v.profile(ctx, v.registry) },
	"wires of others": func(ctx context.Context, v visitor) error {
		wires, err := adminv1.NewAdminClient(v.manager).Wires(ctx, &adminv1.WiresRequest{})
		if err != nil {
			return err
		}
		n := 0
		if err := rpc.Drain(wires, func(*adminv1.WireEvent) error { n++; return nil }); err != nil {
			return err
		}
		if n == 0 {
			return nserr.NotAllowed.Errorf("there is nothing to see")
		}
		return nil
	},
}

func (v visitor) profile(ctx context.Context, at grpc.ClientConnInterface) error {
	pieces, err := adminv1.NewAdminClient(at).Profile(ctx, &adminv1.ProfileRequest{Kind: "goroutine"})
	if err != nil {
		return err
	}
	return rpc.Drain(pieces, func(*adminv1.ProfileChunk) error { return nil })
}

// forge returns a token by which root of the visitor's node seems to call the visitor.
func (v visitor) forge(expires time.Time) (string, error) {
	node, _, _ := identity.NodeOf(v.id)
	root, err := identity.UserID(v.id.TrustDomain(), node, 0)
	if err != nil {
		return "", err
	}
	svid, err := v.source.GetX509SVID()
	if err != nil {
		return "", err
	}
	return jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{
		Subject: root.String(), Audience: jwt.ClaimStrings{v.id.String()}, ExpiresAt: jwt.NewNumericDate(expires),
	}).SignedString(svid.PrivateKey)
}

// try is the child: it tries one door.
func try(door string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	source, err := identity.Open(ctx, identity.Config{})
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	creds, _ := rpc.MutualTLS(source, source)
	options := rpc.DialOptions{Credentials: creds, Tokens: sdktoken.NewGenerator(source, time.Minute)}
	manager, err := rpc.Dial(os.Getenv(atManager), options)
	if err != nil {
		return err
	}
	defer manager.Close()
	registry, err := rpc.Dial(os.Getenv(atRegistry), options)
	if err != nil {
		return err
	}
	defer registry.Close()
	return doors[door](ctx, visitor{source, svid.ID, manager, registry})
}

// visit lets uid 65534 try a door on a node and says whether it was open.
func visit(t *testing.T, n *lab.Node, door string) (open bool) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = append(n.Env(), asNobody+"="+door, atRegistry+"=tcp://"+n.Addr.String()+":5002", "GORACE=atexit_sleep_ms=0")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := n.NetNS.Do(c.Start); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	switch text := out.String(); {
	case text == "open":
		return true
	case !strings.Contains(text, nserr.NotAllowed.Code):
		t.Errorf("%s: %s", door, text)
	}
	return false
}

// needUsers skips a test of what takes a second user: a user namespace of nstest has
// but one.
func needUsers(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, count int
	if _, err := fmt.Sscan(string(text), &inside, &outside, &count); err != nil || inside > nobody || nobody-inside >= count {
		t.Skipf("needs a second user: %s", text)
	}
}

// nodeOf returns how identities call a node.
func nodeOf(t *testing.T, n *lab.Node) string {
	t.Helper()
	source, err := identity.Open(t.Context(), identity.Config{Address: n.Identity()})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	node, _, _ := identity.NodeOf(svid.ID)
	return node
}

// An identity alone opens no door that matters, and each flag one kind of them.
func TestFlagsOfTrust(t *testing.T) {
	needUsers(t)
	needTUN(t)
	l := newLab(t, lab.Config{Nodes: []string{"a"}, Env: sharedTunnel})
	a := l.Node("a")
	up, err := a.Start(t.Context(), "up")
	if err != nil {
		t.Fatal(err)
	}
	unchanged(t, l)
	id := "spiffe://nsm.local/node/" + nodeOf(t, a) + fmt.Sprint("/uid/", nobody)
	serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24", "--payload", "ETHERNET")
	for i, tt := range []struct {
		flag  string
		opens []string
	}{
		{"", nil},
		{"--forwarders", []string{"forwarder"}},
		{"--managers", []string{"request of another", "registration of another", "tunnel of nodes"}},
		{"--node-users", []string{"node's own namespace"}},
		{"--observers", []string{"wires of others"}},
		{"--operators", []string{"profile of the manager", "profile of the registry"}},
	} {
		if tt.flag != "" {
			if err := up.Stop(); err != nil {
				t.Fatal(err)
			}
			if up, err = a.Start(t.Context(), "up", tt.flag, id); err != nil {
				t.Fatal(err)
			}
		}
		client := workload(t, a, fmt.Sprint("web-", i))
		w := connect(t, client, "kernel://db/nsm-1", "--name", fmt.Sprint("web-", i), "--wait", "30s") // all is up again, and there is a wire
		for door := range doors {
			if open := visit(t, a, door); open != slices.Contains(tt.opens, door) {
				t.Errorf("with %q the door %q is open: %v", tt.flag, door, open)
			}
		}
		if err := w.client.Stop(); err != nil {
			t.Error(err)
		}
	}
}
