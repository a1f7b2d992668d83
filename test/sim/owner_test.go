// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/nserr"
)

// hops returns the URLs of the servers on the path of a wire across nodes, in
// order: the one at i stands at index i+1 of the path.
func (r *rig) hops() []string {
	urls := []string{r.a.ManagerURL(), r.a.Forwarder().url}
	if r.a != r.b {
		urls = append(urls, r.b.ManagerURL(), r.b.Forwarder().url)
	}
	return append(urls, r.e.url)
}

// reach gives a stranger the endpoint's socket, as if it could open it.
func (s *Stranger) reach(t *testing.T, e *Endpoint) {
	t.Helper()
	f, err := os.Open(e.socket.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.sockets.Hold(e.url, f))
}

// Somebody with a valid SVID who knows everything there is to know about a wire,
// and may call every hop of it, can do nothing to it.
func TestWiresOfOthers(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		mallory := m.Raw("mallory")
		mallory.reach(t, r.e)
		before, work := View(r.w), r.a.Kernel.Work()+r.b.Kernel.Work()

		// forged is the path with tokens that say what the owner's would say.
		forged := func(c *networkservice.Connection) *networkservice.Connection {
			segments := c.GetPath().GetPathSegments()[:c.GetPath().GetIndex()]
			for i, s := range segments {
				audience := ID("mallory")
				if i+1 < len(segments) {
					audience = ID("web")
				}
				s.Token = mallory.Forge(ID("web"), audience, time.Now().Add(time.Hour))
			}
			return c
		}
		replayed := func(c *networkservice.Connection) *networkservice.Connection { return c }
		for i, url := range r.hops() {
			for name, path := range map[string]func(*networkservice.Connection) *networkservice.Connection{"replayed": replayed, "forged": forged} {
				wish := func(state networkservice.State) error {
					c := path(At(r.w.Connection(), i))
					c.State = state
					if state == networkservice.State_RESELECT_REQUESTED {
						c.Mechanism, c.NetworkServiceEndpointName = nil, ""
					}
					_, err := mallory.Request(url, Again(mallory.Message("db"), c))
					return err
				}
				for what, err := range map[string]error{
					"refresh":  wish(networkservice.State_UP),
					"reselect": wish(networkservice.State_RESELECT_REQUESTED),
					"close":    mallory.Close(url, path(At(r.w.Connection(), i))),
				} {
					if status.Code(err) != codes.PermissionDenied {
						t.Errorf("%s with a %s path at %s: %v", what, name, url, err)
					}
					if name == "forged" && !errors.Is(err, nserr.WrongOwner) {
						t.Errorf("%s with a %s path at %s: %v, want WrongOwner", what, name, url, err)
					}
				}
			}
			if events := mallory.Watch(url, nil).Kinds(); len(events) != 1 || events[0] != "INITIAL_STATE_TRANSFER" {
				t.Errorf("%s shows a stranger %v", url, events)
			}
		}

		Pass(5 * time.Minute) // refreshes go on
		if diff := cmp.Diff(before, View(r.w)); diff != "" || !Up(r.w) {
			t.Errorf("the wire has changed (-before +after):\n%s", diff)
		}
		if now := r.a.Kernel.Work() + r.b.Kernel.Work(); now != work {
			t.Errorf("the kernels were asked %d times", now-work)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// A restarted hop does not know whose a wire is. It takes the owner's word first.
func TestWiresOfOthersAfterARestart(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		mallory := m.Raw("mallory")
		at := r.w.Connection()
		m.Network.SetFate(func(c Call) Fate { // nobody refreshes
			if c.From == "web" {
				return Refuse
			}
			return Deliver
		})
		f := r.a.Forwarder().Restart()
		links := r.a.Kernel.Links()
		c := At(at, 1)
		c.Path.PathSegments[0].Token = mallory.Forge(ID("web"), ID("mallory"), time.Now().Add(time.Hour))
		t.Log(mallory.Close(f.url, c))
		Settle()
		if now := r.a.Kernel.Links(); now != links {
			t.Errorf("%d links of %d are left", now, links)
		}
	})
}
