// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/rpc"
)

// Network knows who answers at which URL, counts the calls, and loses some of
// them if it is told to. URLs outlive restarts, as addresses do.
type Network struct {
	mu    sync.Mutex
	parts map[string]*rpc.Local    // by URL; guarded by mu
	skews map[string]time.Duration // of the clocks of parts, by URL; guarded by mu
	calls []Call                   // guarded by mu
	fate  func(Call) Fate          // guarded by mu; nil delivers everything
	names map[string]string        // of parts, by URL; guarded by mu

	served func(Call)          // hears of each call that was served, before the caller does; guarded by mu
	shared func(proto.Message) // sees what is shared in the process of `nsm up`; guarded by mu

	// See stream.go; guarded by mu.
	eventFate func(Told) EventFate
	hearing   map[*heard]bool
	cut       func(from, to string) bool
	healed    chan struct{} // closed when cut changes

	holding  sync.Mutex
	held     string        // method; guarded by holding
	released chan struct{} // closed when held changes; guarded by holding
}

// Call is one call that somebody made.
type Call struct {
	From, To string // names of parts; To is the URL
	Method   string // Request, Close, Find, …
}

// Fate is what becomes of a call.
type Fate int

// The fates. A lost message ends with the caller's deadline, as it does on a
// network that drops packets.
const (
	Deliver     Fate = iota
	LoseRequest      // it never arrives
	LoseReply        // it is served, and nobody learns of it
	Double           // it is served twice, one after the other
	Refuse           // connection refused
)

func newNetwork() *Network {
	return &Network{
		parts: make(map[string]*rpc.Local), skews: make(map[string]time.Duration), names: make(map[string]string),
		hearing: make(map[*heard]bool), healed: make(chan struct{}), released: make(chan struct{}),
	}
}

// SetFate has f decide about every call from now on. It must not block.
func (n *Network) SetFate(f func(Call) Fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fate = f
}

// SetServed has f hear of each call that was served, before its caller does.
func (n *Network) SetServed(f func(Call)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.served = f
}

func (n *Network) wasServed(c Call) {
	n.mu.Lock()
	served := n.served
	n.mu.Unlock()
	if served != nil {
		served(c)
	}
}

// Calls returns how many calls of a method were made since the last Forget,
// whoever made them.
func (n *Network) Calls(method string) int {
	return len(n.which(func(c Call) bool { return c.Method == method }))
}

// CallsTo is Calls to one URL only.
func (n *Network) CallsTo(url, method string) int {
	return len(n.which(func(c Call) bool { return c.Method == method && c.To == url }))
}

// CallsBy is Calls of one part only.
func (n *Network) CallsBy(name, method string) int {
	return len(n.which(func(c Call) bool { return c.Method == method && c.From == name }))
}

func (n *Network) which(which func(Call) bool) []Call {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(n.calls), func(c Call) bool { return !which(c) })
}

// Forget begins counting anew.
func (n *Network) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = nil
}

func (n *Network) listen(url, name string, l *rpc.Local, skew time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parts[url], n.skews[url], n.names[url] = l, skew, name
}

// leave removes l from url unless somebody else has taken its place.
func (n *Network) leave(url string, l *rpc.Local) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.parts[url] == l {
		delete(n.parts, url)
	}
}

// nobodyAt reports whether a call to url would be refused.
func (n *Network) nobodyAt(url string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.parts[url] == nil
}

// note notes a call and says what becomes of it.
func (n *Network) note(c Call) Fate {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, c)
	if n.fate == nil {
		return Deliver
	}
	return n.fate(c)
}

// SetShared has f see each message that a manager and a forwarder share: a request before it is
// sent, and the answer when it has come.
func (n *Network) SetShared(f func(proto.Message)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shared = f
}

// show shows m to whoever wants to see what is shared, if it is.
func (n *Network) show(l *link, m any) {
	n.mu.Lock()
	f := n.shared
	n.mu.Unlock()
	if f != nil && n.isShared(l) {
		f(m.(proto.Message))
	}
}

// isShared reports whether a link leads from a node's manager to its forwarder or back: in
// the process of `nsm up` they share what they say.
func (n *Network) isShared(l *link) bool {
	from, node, _ := strings.Cut(l.from.name, "-")
	to, other, _ := strings.Cut(n.nameAt(l.url), "-")
	return node == other && (from == "manager" && to == "forwarder" || from == "forwarder" && to == "manager") &&
		l.from.skew == n.skew(l.url)
}

// at returns who is at url, nil if nobody is there.
func (n *Network) at(url string) *rpc.Local {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.parts[url]
}

// skew is that of the clock of whoever is at url.
func (n *Network) skew(url string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.skews[url]
}

// link is a connection of one part to a URL. It implements
// grpc.ClientConnInterface, and like a gRPC connection finds whoever has come to
// the URL in the meantime.
type link struct {
	from *part
	url  string
}

func (l *link) call(method string) Call {
	return Call{From: l.from.name, To: l.url, Method: method[strings.LastIndexByte(method, '/')+1:]}
}

func (l *link) reach(ctx context.Context, method string) (grpc.ClientConnInterface, Fate, error) {
	network := l.from.mesh.Network
	fate := network.note(l.call(method))
	if err := network.pass(ctx, l.from.name, network.nameAt(l.url), l.call(method).Method); err != nil {
		return nil, fate, err
	}
	local := network.at(l.url)
	if strings.HasPrefix(l.url, "inode://") { // as rpc.Sockets.Dial does
		f, err := l.from.sockets.File(l.url)
		if err != nil {
			return nil, fate, unavailable(err.Error())
		}
		_ = f.Close()
	}
	if local == nil || fate == Refuse {
		return nil, fate, unavailable("nobody listens on " + l.url)
	}
	by := l.from.skew - l.from.mesh.Network.skew(l.url)
	conn := local.Dial(rpc.LocalCaller{
		Identity: l.from.identity.local, Tokens: shiftTokens(l.from.tokens, by),
		Share: network.isShared(l),
	})
	if by != 0 {
		conn = skewed{conn, by}
	}
	return conn, fate, nil
}

func unavailable(text string) error {
	return rpc.DecodeError(status.Error(codes.Unavailable, text))
}

// Invoke implements grpc.ClientConnInterface.
func (l *link) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	conn, fate, err := l.reach(ctx, method)
	switch {
	case err != nil:
		return err
	case fate == LoseRequest:
		return silence(ctx)
	case fate == Double:
		_ = conn.Invoke(ctx, method, args, reply, opts...)
	}
	l.from.mesh.Network.show(l, args)
	if err = conn.Invoke(ctx, method, args, reply, opts...); err == nil {
		l.from.mesh.Network.show(l, reply)
	}
	l.from.mesh.Network.wasServed(l.call(method))
	if fate == LoseReply {
		return silence(ctx)
	}
	if lost := l.from.mesh.Network.pass(ctx, l.from.mesh.Network.nameAt(l.url), l.from.name, l.call(method).Method); lost != nil {
		return lost
	}
	return err
}

// silence is what a caller hears of a call that was lost.
func silence(ctx context.Context) error {
	<-ctx.Done()
	return rpc.DecodeError(status.FromContextError(ctx.Err()).Err())
}

// NewStream implements grpc.ClientConnInterface. Streams are refused or not; what
// becomes of the events of a monitor stream is in stream.go.
func (l *link) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, _, err := l.reach(ctx, method)
	if err != nil {
		return nil, err
	}
	stream, err := conn.NewStream(ctx, desc, method, opts...)
	switch {
	case err != nil:
		return nil, err
	case strings.HasSuffix(method, "/MonitorConnections"):
		return l.from.mesh.Network.hear(stream, l.url, l.from.name), nil
	}
	return gated{stream, l}, nil
}
