// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"math/rand/v2"
	"sync"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// numbers hands out what wires of this node must not share: VXLAN network
// identifiers and WireGuard's UDP ports. A number is counted, since a wire and
// its next state hold the same one for a moment.
type numbers struct {
	firstPort uint16
	free      func(port uint16) bool // in the underlay, by anybody

	mu    sync.Mutex
	vnis  map[uint32]int // guarded by mu; holders of each
	ports map[uint16]int // guarded by mu
	next  uint16         // port that is tried first; guarded by mu
}

func newNumbers(firstPort uint16, free func(uint16) bool) *numbers {
	return &numbers{firstPort: firstPort, free: free, vnis: make(map[uint32]int), ports: make(map[uint16]int), next: firstPort}
}

// held returns how many numbers of each kind are handed out.
func (n *numbers) held() (vnis, ports int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.vnis), len(n.ports)
}

// chooseVNI returns a VNI that no wire of this node has, with the given lowest
// bit (mechanism.VXLAN.Parity).
func (n *numbers) chooseVNI(parity uint32) (vni uint32, release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		vni = rand.Uint32N(1<<23)<<1 | parity
		if vni != 0 && n.vnis[vni] == 0 {
			return vni, n.countVNI(vni)
		}
	}
}

// holdVNI holds a VNI that a peer chose, or that this wire has already (mine).
func (n *numbers) holdVNI(vni uint32, mine bool) (release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vnis[vni] > 0 && !mine {
		return nil, nserr.BadMechanism.Errorf("VXLAN: vni %d: %w", vni, plan.ErrVNITaken)
	}
	return n.countVNI(vni), nil
}

// countVNI wants mu held.
func (n *numbers) countVNI(vni uint32) (release func()) {
	n.vnis[vni]++
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.vnis[vni]--; n.vnis[vni] == 0 {
			delete(n.vnis, vni)
		}
	})
}

// choosePort returns a UDP port from firstPort on that nobody has: the first one after
// that which was chosen last, since those before are mostly in use, those of wires from
// before a restart among them. The kernel is asked about a port that is held already,
// not under the lock.
func (n *numbers) choosePort() (port uint16, release func(), err error) {
	n.mu.Lock()
	p := n.next
	n.mu.Unlock()
	for range 65536 - int(n.firstPort) {
		after := max(p+1, n.firstPort) // which begins again after the last
		if release, ok := n.claimPort(p); ok {
			if n.free(p) {
				n.mu.Lock()
				n.next = after
				n.mu.Unlock()
				return p, release, nil
			}
			release()
		}
		p = after
	}
	return 0, nil, nserr.KernelFailed.Errorf("no UDP port from %d on is free for WireGuard", n.firstPort)
}

// claimPort holds a port unless a wire has it.
func (n *numbers) claimPort(port uint16) (release func(), ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports[port] > 0 {
		return nil, false
	}
	return n.countPort(port), true
}

// holdPort holds a port that this wire's device has already.
func (n *numbers) holdPort(port uint16) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.countPort(port)
}

// countPort wants mu held.
func (n *numbers) countPort(port uint16) (release func()) {
	n.ports[port]++
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.ports[port]--; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	})
}
