// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
)

// peers are those of the tunnel.
type peers struct {
	// mu is held while peers come and go: one that is added for a wire is not taken away
	// before the wire leads to it.
	mu sync.Mutex
	// pending are those that were not heard so far; guarded by mu.
	pending map[wgtypes.Key]*pending
	// given are those that WireGuard has been told of, and not to forget (setPeers). One that it
	// does not know was one of a device that has gone with its holder; guarded by mu.
	given   map[wgtypes.Key]bool
	waiting sync.WaitGroup // goroutines of Userspace.wait
	ending  chan struct{}  // closed by end, once
	end     func()
}

// pending is a peer that is waited for. What it holds is guarded by peers.mu.
type pending struct {
	want plan.Tunnel // as a wire to it has last asked for it
	// calls is how often this node has called it. Before the first call the peer is awaited:
	// it has asked this node for a wire, and is to call when it has the answer. WireGuard does
	// not know where it is.
	calls int
	stop  chan struct{} // closed when it is waited for no more
}

func (p *pending) awaited() bool { return p != nil && p.calls == 0 }

// patience is how long to wait for the peer from now on, 0 that it has been called often enough.
func (p *pending) patience() time.Duration {
	switch {
	case p.awaited():
		return callPatience
	case p.calls <= len(answerPatience):
		return answerPatience[p.calls-1]
	default:
		return 0
	}
}

// callPatience is how long a peer is awaited before it is called. It is the time that an
// answer to a Request takes, and a handshake, on nodes that have much else to do.
const callPatience = time.Second

// answerPatience is how long the answer to each call may take before the next one. After the
// last WireGuard goes on calling, each 5 s: more than an application waits for a neighbour's
// address, so that one packet lost would be a wire that does not work.
var answerPatience = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

// hearPatience is how long a peer that was called may be silent after the handshake. One that
// awaited the call sends a keepalive when callPatience is over. One that did not, because it knew
// this node before, may have nothing to send for longer.
const hearPatience = callPatience + 250*time.Millisecond

func newPeers() peers {
	ending := make(chan struct{})
	return peers{
		pending: make(map[wgtypes.Key]*pending), given: make(map[wgtypes.Key]bool),
		ending: ending, end: sync.OnceFunc(func() { close(ending) }),
	}
}

// waitNoMoreLocked waits for a peer no more. The caller holds mu.
func (p *peers) waitNoMoreLocked(k wgtypes.Key) {
	if w, ok := p.pending[k]; ok {
		close(w.stop)
		delete(p.pending, k)
	}
}

// setPeer tells WireGuard of the peer of a wire, of which seen is what it knows. The caller
// holds peers.mu.
//
// Two calls that meet half way are both in vain, for 5 s; and wireguard-go can come out of them
// with keys of which the peer has others, for 15 s. So only the node that has asked for the
// wire calls, when it has the answer and the other one knows it. That one is not told where
// its peer is until it has been called: what workloads send would make it call as well. If it
// is not called for callPatience it calls: it may have lost what it knew, and the peer not. Where
// the forwarder has seen that, because the holder has died and not itself, it calls at once. If
// both have asked each other at the same time the one with the lower id calls. Who has called
// and hears nothing calls again (answerPatience): calls can still meet, where a node takes long
// to hear of an answer, and any packet can be lost.
func (u *Userspace) setPeer(t holder.Tunnel, want plan.Tunnel, seen *wgtypes.Peer) error {
	k := key(want.Peer.Key)
	lost := seen == nil && u.peers.given[k]
	if seen == nil {
		u.peers.waitNoMoreLocked(k)
	}
	p := u.peers.pending[k]
	switch whoCalls(want, seen, lost, p.awaited()) {
	case peerCalls:
		if p != nil {
			p.want = want
			return nil
		}
		set, _ := tunnelPeer(want, nil, time.Now())
		set.Endpoint, set.PersistentKeepaliveInterval = nil, nil
		if err := u.setPeers(t, set); err != nil {
			return err
		}
		u.wait(&pending{want: want})
		return nil
	case ownCall:
		u.peers.waitNoMoreLocked(k)
		if err := u.call(t, want, seen); err != nil {
			return err
		}
		u.wait(&pending{want: want, calls: 1})
		return nil
	}
	if p != nil {
		p.want = want
	}
	if set, needed := tunnelPeer(want, seen, time.Now()); needed {
		return u.setPeers(t, set)
	}
	return nil
}

// caller is who begins a session.
type caller int

const (
	nobodyCalls caller = iota // there is a session, or one is under way
	ownCall
	peerCalls
)

func whoCalls(want plan.Tunnel, seen *wgtypes.Peer, lost, awaited bool) caller {
	switch {
	case seen == nil && (want.Calls || lost):
		return ownCall
	case seen == nil:
		return peerCalls
	case !awaited || !seen.LastHandshakeTime.IsZero():
		return nobodyCalls
	case want.Calls && want.Own.ID < want.Peer.ID:
		return ownCall
	default:
		return peerCalls
	}
}

// call adds a peer anew, which calls it at once. WireGuard would not call one that it has
// called within the last 5 s.
func (u *Userspace) call(t holder.Tunnel, want plan.Tunnel, seen *wgtypes.Peer) error {
	set, _ := tunnelPeer(want, nil, time.Now())
	if seen == nil {
		return u.setPeers(t, set)
	}
	return u.setPeers(t, wgtypes.PeerConfig{PublicKey: set.PublicKey, Remove: true}, set)
}

// wait sees to it, in the background, that a peer is heard in the end. The caller holds peers.mu.
func (u *Userspace) wait(p *pending) {
	p.stop = make(chan struct{})
	u.peers.pending[key(p.want.Peer.Key)] = p
	patience := p.patience()
	u.peers.waiting.Go(func() {
		for patience > 0 {
			select {
			case <-time.After(patience + rand.N(patience/10+1)): // the other one may be calling too
				patience = u.waited(p)
			case <-p.stop:
				return
			case <-u.peers.ending: // whoever comes after finds a peer that is nowhere
				return
			}
		}
	})
}

// waited calls a peer that is not heard, if it is time to, and returns how long to wait for it
// from now on: 0 if it is forgotten. What fails here the next look at the wire finds.
func (u *Userspace) waited(p *pending) (patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*callPatience)
	defer cancel()
	u.peers.mu.Lock()
	defer u.peers.mu.Unlock()
	k := key(p.want.Peer.Key)
	if u.peers.pending[k] != p {
		return 0
	}
	defer func() {
		if patience == 0 {
			u.peers.waitNoMoreLocked(k)
		}
	}()
	t, dev, err := u.device(ctx)
	if err != nil || dev == nil {
		return 0
	}
	seen := findPeer(dev, k)
	if seen == nil {
		return 0
	}
	met := !seen.LastHandshakeTime.IsZero()
	if met && (p.awaited() || heard(seen.ReceiveBytes)) {
		_ = u.setPeer(t, p.want, seen)
		return 0
	}
	if age := time.Since(seen.LastHandshakeTime); met && 0 <= age && age < hearPatience {
		return hearPatience - age
	}
	if met {
		p.calls = len(answerPatience) // it may have nothing to say: once more is enough
	}
	if u.call(t, p.want, seen) != nil {
		return 0
	}
	p.calls++
	return p.patience()
}

// heard reports whether a peer that was called has sent something in its session, by how many
// bytes have come from it: more than an initiation and a response (148 and 92 bytes,
// wireguard.com/protocol), while data comes in multiples of 16 bytes. For wireguard-go can take a
// response for an initiation that it has given up in the same moment; then it listens where the
// peer does not send to, until it is silent for 15 s. Of a peer that was not called the handshake
// is over when something has come.
func heard(received int64) bool {
	const initiation, response = 148, 92
	return !slices.Contains([]int64{0, initiation, response, initiation + response}, received)
}
