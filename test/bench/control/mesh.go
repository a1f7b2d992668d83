// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/garbage"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
	"github.com/openvwire/nsm/test/report"
)

// The two makes, and the order of them in every pair of figures.
var makes = []string{"reference", "ours"}

// alone is the third that works in turn with them, on plaintext.
const alone = "gRPC alone"

// setting is what is measured.
type setting struct {
	Secure bool // mutual TLS, tokens that are checked, default policies
	Nodes  int  // 1 or 2; 0: nothing but a registry
	// Apart has our manager and forwarder of a node call each other over a socket, as the
	// reference's do and ours as processes of their own. Else they are as in `nsm up`.
	Apart bool
}

func (s setting) String() string {
	return fmt.Sprintf("%s, %s", s.mode(), []string{1: "1 node", 2: "2 nodes"}[s.Nodes])
}

// mode is the setting but for the number of nodes.
func (s setting) mode() string {
	if s.Apart {
		return s.security() + ", apart"
	}
	return s.security()
}

func (s setting) security() string {
	if s.Secure {
		return "mutual TLS"
	}
	return "plaintext"
}

// place is where a mesh is to be called, and as who.
type place struct {
	Manager  string // URL of the client's node's
	Registry string
	SVID     []byte // PEM, with the key
	Bundle   []byte // PEM
	Secure   bool
}

// service is the one there is.
const service = "echo"

// hasAlone is whether gRPC alone is measured, too.
func (s setting) hasAlone() bool { return !s.Secure && !s.Apart }

// serverQuestion is a question to a "server" child: Start or Usage is set.
type serverQuestion struct {
	Start  *setting
	Answer []byte // with Start, of gRPC alone: the connection to answer with, encoded
	Usage  bool
}

type serverAnswer struct {
	Place place // of Start
	Usage usage
}

// usage is what the process has, once it has collected its garbage.
type usage struct {
	Resident   int64 // bytes
	Goroutines int
}

// serverRole is the process with all servers of a mesh of one make.
func serverRole(args []string) error {
	ref.Silence()
	p := new(process)
	defer p.end()
	if len(args) > 1 {
		end, err := profile(args[1])
		if err != nil {
			return err
		}
		defer end()
	}
	return report.Answer(func(q serverQuestion) (a serverAnswer, err error) {
		if q.Start != nil {
			if args[0] != "reference" {
				garbage.Collect() // as every daemon of ours
			}
			a.Place, err = start(p, args[0], *q.Start, q.Answer)
			return a, err
		}
		a.Usage, err = usageNow()
		return a, err
	})
}

// start starts a mesh of a make, or gRPC alone, which answers with answer.
func start(t testing.TB, make string, s setting, answer []byte) (p place, err error) {
	ca := ref.NewCA(t, "example.org")
	as := func(name string) ref.Security {
		if s.Secure {
			return ca.MutualTLS(t, name)
		}
		return ca.Plain(t, name)
	}
	switch {
	case make == alone && s.Nodes == 0:
		p.Registry = startAloneRegistry(t)
	case make == alone:
		p.Manager, err = startAlone(t, s.Nodes, answer)
	default:
		p = assemblers[make].start(t, as, s)
	}
	if err != nil {
		return p, err
	}
	p.Secure = s.Secure
	certs, key, err := as("client").SVID.Marshal()
	if err != nil {
		return p, err
	}
	p.SVID = append(certs, key...)
	p.Bundle, err = ca.Bundle().Marshal()
	return p, err
}

// start starts a mesh: a registry, of each node a manager and a forwarder, and an
// endpoint on the last node. The client's is the first.
func (parts assembler) start(t testing.TB, as func(name string) ref.Security, s setting) (p place) {
	expiry := ref.DefaultExpiry
	if s.Nodes == 0 {
		expiry = time.Hour // nobody renews what is registered
	}
	p.Registry = parts.registry(t, as("registry"), expiry)
	var manager string
	node := parts.node
	if s.Apart {
		node = parts.apart
	}
	for _, name := range []string{"a", "b"}[:s.Nodes] {
		manager = node(t, as, name, p.Registry)
		if p.Manager == "" {
			p.Manager = manager
		}
	}
	if s.Nodes > 0 {
		parts.endpoint(t, as("endpoint"), manager)
	}
	return p
}

// identity is who calls the mesh.
func (p place) identity() (ref.Security, error) {
	svid, err := x509svid.Parse(p.SVID, p.SVID)
	if err != nil {
		return ref.Security{}, err
	}
	bundle, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString("example.org"), p.Bundle)
	return ref.Security{SVID: svid, Bundle: bundle, Checked: p.Secure}, err
}

// assembler assembles the parts of a make. URLs are what the next takes; as gives
// each its identity.
type assembler struct {
	registry func(t testing.TB, s ref.Security, expiry time.Duration) (url string)
	node     nodeAssembler
	apart    nodeAssembler
	endpoint func(t testing.TB, s ref.Security, manager string)
}

// nodeAssembler assembles a manager and a forwarder.
type nodeAssembler func(t testing.TB, as func(name string) ref.Security, name, registry string) (manager string)

// cidr has enough addresses for all connections.
const cidr = "10.0.0.0/8"

var assemblers = map[string]assembler{
	"reference": {
		registry: func(t testing.TB, s ref.Security, expiry time.Duration) string {
			return ref.RegistryExpiring(t, s, expiry, ref.Loopback).URL()
		},
		node:  referenceNode,
		apart: referenceNode,
		endpoint: func(t testing.TB, s ref.Security, manager string) {
			ref.RegisterService(t, s, manager, theService())
			ref.Endpoint(t, s, ref.EndpointConfig{Name: "endpoint", Service: service, CIDR: cidr, Manager: manager})
		},
	},
	"ours": {
		registry: func(t testing.TB, s ref.Security, expiry time.Duration) string {
			return ours.Registry(t, s, expiry, ref.Loopback).URL
		},
		node: func(t testing.TB, as func(string) ref.Security, name, registry string) string {
			p, _ := ours.Node(t, as("manager-"+name), as("forwarder-"+name), ourManager(name, registry), ourForwarder(t, name))
			return p.URL
		},
		apart: func(t testing.TB, as func(string) ref.Security, name, registry string) string {
			p, _ := ours.Manager(t, as("manager-"+name), ourManager(name, registry))
			f := ourForwarder(t, name)
			f.Manager = p.URL
			ours.Forwarder(t, as("forwarder-"+name), f)
			return p.URL
		},
		endpoint: func(t testing.TB, s ref.Security, manager string) {
			space, err := netns.New()
			if err != nil {
				t.Fatal(err)
			}
			ours.Endpoint(t, s, ours.EndpointConfig{Name: "endpoint", Service: theService(), CIDR: cidr, Manager: manager, NetNS: space})
		},
	},
}

func referenceNode(t testing.TB, as func(string) ref.Security, name, registry string) string {
	url := ref.Manager(t, as("manager-"+name), ref.ManagerConfig{Name: "manager-" + name, Registry: registry}).URL()
	ref.Forwarder(t, as("forwarder-"+name), ref.ForwarderConfig{Name: "forwarder-" + name, Manager: url})
	return url
}

func ourManager(name, registry string) ours.ManagerConfig {
	return ours.ManagerConfig{Name: "manager-" + name, Registry: registry}
}

func ourForwarder(t testing.TB, name string) ours.ForwarderConfig {
	namespaces, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	return ours.ForwarderConfig{
		Name: "forwarder-" + name, TunnelIP: netip.MustParseAddr("127.0.0.1"), Kernel: noKernel{}, Namespaces: namespaces,
	}
}

func theService() *api.NetworkService { return &api.NetworkService{Name: service, Payload: "IP"} }

// noKernel makes a forwarder a pass-through one: it is told what is wanted, and
// does nothing.
type noKernel struct{}

var _ forwarder.Kernel = noKernel{}

func (noKernel) Apply(context.Context, plan.Wire) ([]plan.Step, error)  { return nil, nil }
func (noKernel) Switch(context.Context, plan.Wire) ([]plan.Step, error) { return nil, nil }
func (noKernel) Remove(context.Context, plan.Wire) error                { return nil }
func (noKernel) Observe(context.Context, plan.Wire) (plan.Observed, error) {
	return plan.Observed{}, nil
}
func (noKernel) Look() func(context.Context, plan.Wire) bool {
	return func(context.Context, plan.Wire) bool { return true }
}
func (noKernel) WireGuardKey(context.Context, string, string) (key [32]byte, port uint16, ok bool) {
	return key, 0, false
}
func (noKernel) FindLinks(context.Context) ([]plan.Found, error) { return nil, nil }
func (noKernel) UnderlayMTU(netip.Addr) (int, error)             { return 1500, nil }
func (noKernel) UnderlayPrefix(a netip.Addr) (netip.Prefix, error) {
	return netip.PrefixFrom(a, a.BitLen()), nil
}
func (noKernel) OpenTunnel(context.Context, plan.TunnelNode) (plan.TunnelNode, error) {
	return plan.TunnelNode{}, nserr.Unsupported.Errorf("there is no kernel")
}
func (noKernel) TunnelWire(context.Context, string, string) (uint32, bool) { return 0, false }
func (noKernel) RenewTunnel(context.Context, plan.Wire) error              { return nil }
func (noKernel) PortFree(uint16) bool                                      { return true }

func usageNow() (u usage, err error) {
	runtime.GC() // what pools hold goes with the second
	debug.FreeOSMemory()
	u.Goroutines = runtime.NumGoroutine()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, err = fmt.Sscan(rest, &u.Resident)
	u.Resident <<= 10
	return u, err
}

// profile writes profiles of the processor and of allocations until end is called.
func profile(name string) (end func(), err error) {
	runtime.MemProfileRate = 64 << 10
	cpu, err := os.Create(name + ".cpu.pprof")
	if err != nil {
		return nil, err
	}
	allocs, err := os.Create(name + ".allocs.pprof")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = cpu.Close()
		_ = pprof.Lookup("allocs").WriteTo(allocs, 0)
		_ = allocs.Close()
	}, nil
}
