// SPDX-License-Identifier: Apache-2.0

// Package forwarder is the data plane's server: it chooses the endpoint of a
// connection and makes the wire in the kernel.
//
// A Request comes from the node's manager. The forwarder settles the leg towards
// the client (left), asks the registry for endpoints and one of them, or the
// manager of its node, for the leg towards the endpoint (right), and then states
// what both legs need as one desired state, which package kernel applies:
//
//	left     right                     in the kernel
//	KERNEL   KERNEL                    a veth pair, an end in each workload's namespace
//	KERNEL   VXLAN or WIREGUARD        a tunnel device in the client's namespace
//	VXLAN or WIREGUARD   KERNEL        a tunnel device in the endpoint's namespace
//
// request.go follows a Request from top to bottom, legs.go has the two legs,
// desired.go the pure translation into package plan, endpoint.go the choice of
// the endpoint, admin.go what operators are told. A forwarder keeps no file: the
// kernel is the truth, and a refresh brings back what a restart forgot.
package forwarder

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// Kernel is where wires are made. Package kernel is the real one, package
// memkernel its twin in memory.
type Kernel interface {
	// Apply makes the kernel have w, whatever it has now, or leaves it as it was.
	// It returns what it did.
	Apply(ctx context.Context, w plan.Wire) ([]plan.Step, error)
	// Switch is Apply that leaves links which packets took before, set aside, for the
	// next Apply to delete.
	Switch(ctx context.Context, w plan.Wire) ([]plan.Step, error)
	// Remove removes all of w. What is gone already is no error.
	Remove(ctx context.Context, w plan.Wire) error
	// Look looks at many wires at once: what it returns reports whether w is as Apply
	// would make it. It may show it as it was since Look was called. What is not sure is
	// not intact.
	Look() (intact func(ctx context.Context, w plan.Wire) bool)
	// Observe returns what the kernel has of w.
	Observe(ctx context.Context, w plan.Wire) (plan.Observed, error)
	// WireGuardKey returns the private key and UDP port of the WireGuard device
	// of a wire in a namespace, if there is one: a restart must not change them.
	WireGuardKey(ctx context.Context, netns, wireID string) (key [32]byte, port uint16, ok bool)
	// FindLinks returns the links that carry this forwarder's tag. The caller owns one
	// reference to the namespace of each in Config.Namespaces.
	FindLinks(ctx context.Context) ([]plan.Found, error)
	// UnderlayMTU returns the MTU of the link that has the given address.
	UnderlayMTU(addr netip.Addr) (int, error)
	// UnderlayPrefix returns the given address with the length that its link's
	// prefix has.
	UnderlayPrefix(addr netip.Addr) (netip.Prefix, error)
	// OpenTunnel returns this node's end of the tunnel that wires to other nodes share,
	// and makes it as wanted if there is none. It fails with nserr.Unsupported where
	// there can be none, and with nserr.AddressInUse if somebody has the port.
	OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error)
	// TunnelWire returns the number of a wire in the tunnel whose interface is in a
	// namespace, if there is one: a restart must not change it.
	TunnelWire(ctx context.Context, netns, wireID string) (number uint32, ok bool)
	// RenewTunnel forgets the session with the peer of w, which is in the tunnel, and all
	// that was remembered of earlier ones.
	RenewTunnel(ctx context.Context, w plan.Wire) error
	// PortFree reports whether a UDP port can be bound in the underlay.
	PortFree(port uint16) bool
}

// Config is what a forwarder needs.
type Config struct {
	Name     string     // of its path segments and its registration; unique in the domain
	TunnelIP netip.Addr // this node's address on the underlay; invalid = local wires only

	Tokens   token.Generator
	Policy   hop.Policy               // nil means hop.Strict
	Peers    *peer.Pool               // to endpoints and to other managers
	Sockets  *rpc.Sockets             // of local endpoints; Peers dials through it
	Registry grpc.ClientConnInterface // as the node's manager shows it: the connection to that

	Kernel     Kernel
	Namespaces *netns.Table

	// MayUseNode reports whether an identity may have interfaces, and with them
	// routes, in the node's own network namespace, where this process runs. Any
	// local user can name it, so by default nobody may. It is asked for the node's
	// manager too, through which clients send their namespaces.
	MayUseNode func(id string) bool
	// MayTunnel reports whether an identity may tell of another node's end of the tunnel, as
	// managers and forwarders do. nil means that all may. Whoever may not has wires with
	// devices of their own.
	MayTunnel func(id string) bool
	// MayProfile reports whether an identity may record profiles of this process. nil
	// means that nobody may.
	MayProfile func(id string) bool
	// Needed are the URLs of those, besides the peers, whom no wire in the node's own
	// namespace may come between: the domain's registry, if it is elsewhere.
	Needed []string

	// NoTunnel has each wire have a device of its own. Else it shares one with all others
	// where WireGuard is in userspace and the other node can do it, too.
	NoTunnel bool
	// Encrypted refuses wires to other nodes whose packets would be in the clear: those with
	// payload ETHERNET that do not get the tunnel. What an earlier life has left of such
	// wires is removed by Adopt.
	Encrypted bool

	VXLANPort     uint16 // default 4789, the same on all nodes
	WireGuardPort uint16 // the first that is tried; default 51820

	Logger *slog.Logger // nil means slog.Default()
}

// Forwarder implements the NetworkService and MonitorConnection services.
type Forwarder struct {
	config   Config
	log      *slog.Logger
	hop      hop.Hop
	monitor  *hop.Monitor
	wires    *conn.Table[wire]
	numbers  *numbers
	tunnel   tunnel
	uplink   atomic.Int64 // MTU of the link under the tunnels, as it was last read; 0: never
	turns    turns
	suspects suspects
	cleanup  *hop.Cleanup   // at endpoints
	removals sync.WaitGroup // of wires, from the kernel
	ending   chan struct{}  // closed by end
	end      func()
	damaged  nserr.Book // what was found wrong with wires in the kernel, by connection

	graceEnds atomic.Pointer[time.Time] // for what an earlier life has made; nil before Adopt
}

// wire is what the forwarder remembers of a connection. The holder of its turn
// owns it.
type wire struct {
	binding hop.Binding
	next    hop.Next
	left    mechanism.Mechanism // as the caller was told
	right   mechanism.Mechanism // as the next hop answered
	desired plan.Wire           // what the kernel has
	holds   holdings            // namespaces, sockets, numbers
	lingers time.Time           // until then some of what it was before is there beside it, see retire
	own     ownKeys             // for the next refresh to say again

	// adopted wires are links without a connection: an earlier life of this forwarder
	// has made them, or they could not be removed. No more is known of them: only
	// desired, as far as it takes to remove them, and holds mean something. The next
	// Request makes them whole.
	adopted bool
	stuck   int // how often it could not be removed
}

// ownKeys are of the WireGuard device that a wire has, or would have if it were not in
// the tunnel.
type ownKeys struct {
	keys mechanism.KeyPair
	port uint16 // 0: there are none
}

func ownKeysOf(legs ...*leg) (own ownKeys) {
	for _, l := range legs {
		if !l.keys.Private.IsZero() {
			own = ownKeys{l.keys, l.local.Port()}
		}
	}
	return own
}

// New returns a forwarder. It touches nothing before the first Request.
func New(c Config) (*Forwarder, error) {
	if c.Name == "" || c.Tokens == nil || c.Peers == nil || c.Sockets == nil || c.Registry == nil || c.Kernel == nil || c.Namespaces == nil {
		return nil, nserr.BadFlag.Errorf("a forwarder needs a name, tokens, peers, sockets, a registry, a kernel and a table of namespaces")
	}
	if c.MayUseNode == nil {
		c.MayUseNode = func(string) bool { return false }
	}
	if c.VXLANPort == 0 {
		c.VXLANPort = mechanism.DefaultVXLANPort
	}
	if c.WireGuardPort == 0 {
		c.WireGuardPort = mechanism.DefaultWireGuardPort
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	f := &Forwarder{
		config:  c,
		log:     c.Logger.With("part", "forwarder", "name", c.Name),
		monitor: hop.NewMonitor(c.Policy),
		numbers: newNumbers(c.WireGuardPort, c.Kernel.PortFree),
		cleanup: hop.NewCleanup(c.Peers, c.Sockets),
		ending:  make(chan struct{}),
	}
	f.end = sync.OnceFunc(func() { close(f.ending) })
	f.hop = hop.Hop{Name: c.Name, Tokens: c.Tokens, Policy: c.Policy, Monitor: f.monitor}
	f.tunnel.peers = make(map[uint32]*claimant)
	f.turns.name = c.Name
	f.wires = conn.NewTable[wire](f.expire)
	return f, nil
}

// Register puts the forwarder's services on a server.
func (f *Forwarder) Register(s grpc.ServiceRegistrar) {
	rpc.RegisterNetworkService(s, f)
	rpc.RegisterMonitorConnection(s, f.monitor)
	adminv1.RegisterAdminServer(s, &admin{Server: profile.Server{May: f.config.MayProfile, Logger: f.log}, f: f})
}

// Monitor has what watchers see.
func (f *Forwarder) Monitor() *hop.Monitor { return f.monitor }

// Desired returns what the forwarder wants the kernel to have for a connection.
func (f *Forwarder) Desired(ctx context.Context, id string) (w plan.Wire, ok bool, err error) {
	err = f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if t.Record != nil {
			w, ok = t.Record.desired, true
		}
		return nil
	})
	return w, ok, err
}

// Usage counts what a forwarder holds for its wires; all are zero when the last
// one is closed.
type Usage struct {
	Wires int // with a record, or a call under way
	VNIs  int
	Ports int // UDP ports of WireGuard devices of wires, those included that it would take without the tunnel
}

// Usage returns what is held now.
func (f *Forwarder) Usage() Usage {
	vnis, ports := f.numbers.held()
	if f.tunnel.opened() != (plan.TunnelNode{}) {
		ports-- // the tunnel's own, which stays
	}
	return Usage{Wires: f.wires.Len(), VNIs: vnis, Ports: ports}
}

// Stop ends the forwarder's work. Wires stay in the kernel: packets flow on, and
// whoever comes after this forwarder adopts them.
func (f *Forwarder) Stop() {
	f.end()
	for _, id := range f.wires.IDs() {
		_ = f.wires.Do(context.Background(), id, func(t *conn.Turn[wire]) error {
			if t.Record != nil {
				t.Record.next.Drop()
				t.Record.holds.release()
			}
			t.Record = nil
			return nil
		})
	}
	f.wires.Close()
	f.removals.Wait()
	f.tunnel.close()
	f.cleanup.Stop()
}

// holdings are things that must be released once each: namespaces, sockets,
// numbers.
type holdings []func()

func (h *holdings) add(release func()) { *h = append(*h, release) }

// take moves what others hold to h.
func (h *holdings) take(others ...*holdings) {
	for _, o := range others {
		*h = append(*h, *o...)
		*o = nil
	}
}

func (h *holdings) release() {
	for _, release := range *h {
		release()
	}
	*h = nil
}
