// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/client"
)

// stuck makes the kernel of a node refuse to delete links while the result is true.
func (n *Node) stuck() *atomic.Bool {
	var stuck atomic.Bool
	n.Kernel.Fail = func(s plan.Step) error {
		if _, is := s.(plan.DelLink); is && stuck.Load() {
			return syscall.EBUSY
		}
		return nil
	}
	return &stuck
}

// logged counts the lines of a level that say something.
func (m *Mesh) logged(level, text string) (n int) {
	m.logs.mu.Lock()
	defer m.logs.mu.Unlock()
	for line := range strings.Lines(m.logs.buf.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// A wire that the kernel does not let go of is tried again until it does, and said
// so once.
func TestRemovalIsRepeated(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				a := m.Node("a")
				stuck := a.stuck()
				at := a
				if shape.across {
					at = m.Node("b")
				}
				at.Serve(Service{Name: "db", Payload: shape.payload})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1")
				stuck.Store(true)
				_ = w.Close(t.Context())
				Pass(10 * time.Minute)
				if a.Kernel.Links() == 0 || a.Forwarder().Usage().Wires != 1 {
					t.Errorf("%d links, %d wires", a.Kernel.Links(), a.Forwarder().Usage().Wires)
				}
				if n := a.Kernel.Removes.Load(); n < 10 || n > 30 {
					t.Errorf("tried %d times in ten minutes", n)
				}
				if n := m.logged("ERROR", "not removed"); n != 1 {
					t.Errorf("said %d times", n)
				}
				stuck.Store(false)
				Pass(2 * time.Minute)
				m.CheckEmpty()
			})
		})
	}
}

// A connection that is asked for again while its link is stuck gets that link.
func TestStuckLinkIsUsedAgain(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				a := m.Node("a")
				stuck := a.stuck()
				at := a
				if shape.across {
					at = m.Node("b")
				}
				at.Serve(Service{Name: "db", Payload: shape.payload})
				c := a.Client("web")
				request := client.Request{ID: "the-wire", Service: "db", Interface: "nsm-1"}
				w, err := c.Ask(t.Context(), request)
				if err != nil {
					t.Fatal(err)
				}
				stuck.Store(true)
				_ = w.Close(t.Context())
				stuck.Store(false)
				if w, err = c.Ask(t.Context(), request); err != nil {
					t.Fatal(err)
				}
				Pass(10 * time.Minute)
				if a.Kernel.Links() == 0 || !Up(w) {
					t.Errorf("%d links, wire %v", a.Kernel.Links(), w.Connection())
				}
				c.Close(w)
				m.CheckEmpty()
			})
		})
	}
}
