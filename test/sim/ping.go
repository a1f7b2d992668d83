// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/sdk/client"
)

// pingTrip is how long a ping takes, there and back.
const pingTrip = time.Millisecond

// Pings has a client ping the far ends of its wires (Node.Client). Answers come
// where the kernels have a wire between the two addresses, as long as no node on
// the way is a hole.
func (m *Mesh) Pings(c *client.Config) {
	air := &memecho.Air{Trip: pingTrip}
	air.SetCarries(m.carries)
	c.Liveness = client.Liveness{Open: func(netns *os.File, from, to netip.Addr) (client.Echo, error) {
		s, err := air.Open(netns, from, to)
		if err != nil {
			return nil, err
		}
		return s, nil
	}}
}

// SetHole has a node swallow all packets between it and others, or no longer.
func (m *Mesh) SetHole(n *Node, hole bool) {
	m.underlay.mu.Lock()
	defer m.underlay.mu.Unlock()
	m.underlay.holes[n] = hole
}

// underlay is what lies between the nodes.
type underlay struct {
	mu    sync.Mutex
	holes map[*Node]bool // every node, and whether it is a hole; guarded by mu
}

// carries reports whether packets get from one address to the other.
func (m *Mesh) carries(p memecho.Path) bool {
	space, err := netns.Key(p.NetNS)
	if err != nil {
		return false
	}
	m.underlay.mu.Lock()
	defer m.underlay.mu.Unlock()
	for here, hole := range m.underlay.holes {
		if !here.Kernel.Has(space, p.From) {
			continue
		}
		for there, hole2 := range m.underlay.holes {
			if (here == there || !hole && !hole2) && there.Kernel.Has("", p.To) {
				return true
			}
		}
	}
	return false
}
