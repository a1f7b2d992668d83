// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
)

// A wire that becomes another one, of whatever kind and to wherever, loses no packet
// meanwhile: not of one a millisecond to each address, also those that a policy and a
// next hop lead to.
func TestReplacedUnderPackets(t *testing.T) {
	needRenames(t)
	for _, payload := range []string{plan.IP, plan.Ethernet} {
		t.Run(payload, func(t *testing.T) {
			a, b := newNode(t, "fwd"), newNode(t, "fwd")
			connect(t, a, b)
			client, here, there, far, farther := a.workload(), a.workload(), a.workload(), b.workload(), b.workload()
			spaces := []place{{a, here}, {a, there}, {b, far}, {b, farther}}
			var before []nstest.Census
			for _, s := range append(spaces, place{a, client}) {
				before = append(before, s.census(s.key))
			}

			policed, beyond := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
			complete := func(w plan.Wire) plan.Wire {
				for i := range w.Ends {
					e := &w.Ends[i]
					if e.Side == plan.Endpoint {
						e.Addrs = append(e.Addrs, netip.PrefixFrom(policed, 32), netip.PrefixFrom(beyond, 128))
						continue
					}
					e.Name = "nsm-c"
					e.Routes = append(e.Routes, plan.Route{Dst: prefixes("2001:db8::/32")[0], Via: netip.MustParseAddr("fd00::2"), OnLink: true})
					e.Policies = []plan.Policy{{Proto: "udp", Routes: []plan.Route{
						{Dst: prefixes("198.51.100.0/24")[0], Via: netip.MustParseAddr("10.0.0.2"), OnLink: true}}}}
				}
				return w
			}
			local := func(space string) plan.Wire { return complete(vethWire("u1", client, space, payload, 4, 6)) }
			tunnel := func(space string, vni uint32) plan.Wire {
				mustApply(t, b, complete(vxlanWire(fmt.Sprint("far", vni), space, 2, vni, "172.16.0.%d")))
				return complete(vxlanWire("u1", client, 1, vni, "172.16.0.%d"))
			}
			steps := []func() plan.Wire{
				func() plan.Wire { return local(there) },
				func() plan.Wire { return local(here) },
			}
			if payload == plan.Ethernet {
				steps = append(steps,
					func() plan.Wire { return tunnel(far, 7) },
					func() plan.Wire { return tunnel(farther, 8) },
					func() plan.Wire { return local(there) },
				)
			}

			w := local(here)
			mustApply(t, a, w)
			targets := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2"), policed, beyond}
			f := flood(t, place{a, client}, targets, spaces...)
			for i, next := range steps {
				f.more(t)
				w = next()
				if _, err := a.Switch(t.Context(), w); err != nil {
					t.Fatal(err)
				}
				f.more(t)
				if rest := mustApply(t, a, w); len(rest) > 1 {
					t.Errorf("move %d: left to do after Switch:\n%s", i, script(rest))
				}
				mustBeDone(t, a, w)
			}
			f.more(t)
			if sent, lost := f.stop(); len(lost) != 0 {
				t.Errorf("%d of %d packets are lost in %d moves: %s", len(lost), sent, len(steps), strings.Join(lost, ", "))
			} else {
				t.Logf("none of %d packets is lost in %d moves", sent, len(steps))
			}
			err := a.Remove(t.Context(), w)
			if payload == plan.Ethernet {
				err = errors.Join(err, b.Remove(t.Context(), vxlanWire("far7", far, 2, 7, "172.16.0.%d")),
					b.Remove(t.Context(), vxlanWire("far8", farther, 2, 8, "172.16.0.%d")))
			}
			if err != nil {
				t.Error(err)
			}
			for i, s := range append(spaces, place{a, client}) {
				if after := s.census(s.key); after != before[i] {
					t.Errorf("namespace %d: before %+v, after %+v", i, before[i], after)
				}
			}
		})
	}
}

// A stream goes on while both ends of its wire are made anew.
func TestReplacedUnderStream(t *testing.T) {
	needRenames(t)
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	mustApply(t, n, w)
	near, far := stream(t, place{n, client}, place{n, endpoint}, netip.MustParseAddr("fd00::2"))
	var echoing, reading sync.WaitGroup
	echoing.Go(func() {
		_, _ = io.Copy(struct{ io.Writer }{far}, far)
		_ = far.Close()
	})
	const size = 1 << 20
	block := make([]byte, size)
	for i := range 3 {
		reading.Go(func() {
			if _, err := io.ReadFull(near, make([]byte, size)); err != nil {
				t.Error(err)
			}
		})
		if _, err := near.Write(block[:size/2]); err != nil {
			t.Fatal(err)
		}
		w.Ends = slices.Clone(w.Ends)
		w.Ends[0].Name, w.Ends[1].Name = fmt.Sprint("nsm-c", i), fmt.Sprint("nsm-e", i)
		mustApply(t, n, w)
		mustBeDone(t, n, w)
		if _, err := near.Write(block[size/2:]); err != nil {
			t.Fatal(err)
		}
		reading.Wait()
	}
	near.Close()
	echoing.Wait()
}

// A kernel that refuses the new link leaves the wire as it was, and carrying packets.
func TestRefusedReplacement(t *testing.T) {
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	client, endpoint, other := a.workload(), a.workload(), a.workload()
	w := vethWire("u1", client, endpoint, plan.Ethernet, 4)
	mustApply(t, a, w)
	mustApply(t, a, vxlanWire("u2", other, 1, 5, "172.16.0.%d"))
	before := a.census(client)
	want := vxlanWire("u1", client, 1, 5, "172.16.0.%d")
	want.Ends[0].Name = "nsm-c"
	if _, err := a.Switch(t.Context(), want); !errors.Is(err, plan.ErrVNITaken) {
		t.Errorf("error is %v, want ErrVNITaken", err)
	}
	mustBeDone(t, a, w)
	mustEcho(t, a, client, "10.0.0.1", a, endpoint, "10.0.0.2")
	if after := a.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// Whoever goes on after a forwarder that was killed finds the links that it had set
// aside, and whoever removes the wire removes them.
func TestLeftAside(t *testing.T) {
	needRenames(t)
	n := newNode(t, "fwd")
	client, endpoint, other := n.workload(), n.workload(), n.workload()
	before := []nstest.Census{n.census(client), n.census(endpoint), n.census(other)}
	w, moved := vethWire("u1", client, endpoint, plan.IP, 4, 6), vethWire("u1", client, other, plan.IP, 4, 6)
	for name, then := range map[string]func() error{
		"goes on": func() error {
			mustApply(t, newKernel(t, "fwd", n.table), moved)
			mustBeDone(t, n, moved)
			mustEcho(t, n, client, "10.0.0.1", n, other, "10.0.0.2")
			return n.Remove(t.Context(), moved)
		},
		"goes back": func() error {
			mustApply(t, newKernel(t, "fwd", n.table), w)
			mustBeDone(t, n, w)
			mustEcho(t, n, client, "fd00::1", n, endpoint, "fd00::2")
			return n.Remove(t.Context(), w)
		},
		"is removed": func() error { return newKernel(t, "fwd", n.table).Remove(t.Context(), moved) },
		"is found and removed": func() error {
			k := newKernel(t, "fwd", n.table)
			found, err := k.FindLinks(t.Context())
			if err != nil {
				return err
			}
			for _, f := range found {
				n.table.Release(f.NetNS)
			}
			for _, w := range plan.Wires(found) {
				err = errors.Join(err, k.Remove(t.Context(), w))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			mustApply(t, n, w)
			if _, err := n.Switch(t.Context(), moved); err != nil {
				t.Fatal(err)
			}
			if err := then(); err != nil {
				t.Error(err)
			}
			if after := []nstest.Census{n.census(client), n.census(endpoint), n.census(other)}; !slices.Equal(before, after) {
				t.Errorf("before %+v, after %+v", before, after)
			}
		})
	}
}

// A link that is up keeps its settings while it has another name: sysctls as well as
// what hangs on it.
func TestRenamedLinkKeepsAll(t *testing.T) {
	needRenames(t)
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	mustApply(t, n, w)
	err := n.table.Do(client, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/nsm-c/rp_filter", []byte("2"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	before := n.census(client)
	n.inside(client, func(h *netlink.Handle) error {
		for _, names := range [][2]string{{"nsm-c", "other"}, {"other", "nsm-c"}} {
			l, err := h.LinkByName(names[0])
			if err != nil {
				return err
			}
			if err := h.LinkSetName(l, names[1]); err != nil {
				return err
			}
			mustEcho(t, n, client, "10.0.0.1", n, endpoint, "10.0.0.2")
		}
		return nil
	})
	mustBeDone(t, n, w)
	if after := n.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
	err = n.table.Do(client, func() error {
		value, err := os.ReadFile("/proc/sys/net/ipv4/conf/nsm-c/rp_filter")
		if string(value) != "2\n" {
			t.Errorf("rp_filter is %q", value)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// needRenames skips a test of links that change their names while they are up.
func needRenames(t *testing.T) {
	t.Helper()
	if !nstest.RenamesUp() {
		t.Skip("this kernel does not rename links that are up (Linux 6.2)")
	}
}

// place is a workload's namespace and the node that it is on.
type place struct {
	*node
	key string
}

// flooding is packets on their way.
type flooding struct {
	stop func() (sent int, lost []string)

	mu      sync.Mutex
	sent    uint64            // packets, numbered from 1
	back    int               // answers
	missing map[uint64]string // by number, where each went that has no answer yet
}

// more waits until every packet has come back that was sent before the call, so that
// nothing is under way any more where a link that has been replaced led, and until
// packets have come back that were sent after it. What takes longer than a second is
// lost, which stop says.
func (f *flooding) more(t *testing.T) {
	t.Helper()
	begun := time.Now()
	f.mu.Lock()
	before, back := f.sent, f.back
	f.mu.Unlock()
	for !f.came(before, back+50) {
		if waited := time.Since(begun); waited > 10*time.Second {
			t.Fatal("no packet comes back any more")
		} else if waited > time.Second {
			before = 0
		}
		<-time.After(time.Millisecond)
	}
}

// came tells whether the packets to the number given have their answers, and as many
// answers have come as given.
func (f *flooding) came(to uint64, back int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for number := range f.missing {
		if number <= to {
			return false
		}
	}
	return f.back >= back
}

// mostMissing is how many packets are under way at most. More could wait in the buffer of
// a socket (212,992 bytes, some 270 packets) for an end that has no processor, and be lost
// there.
const mostMissing = 128

// send sends a packet with the next number to the target, unless too many are under way.
func (f *flooding) send(from *net.UDPConn, to netip.AddrPort) {
	f.mu.Lock()
	if len(f.missing) >= mostMissing {
		f.mu.Unlock()
		return
	}
	f.sent++
	number := f.sent
	f.missing[number] = fmt.Sprintf("%d to %s", number, to.Addr())
	f.mu.Unlock()
	if _, err := from.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, number), to); err != nil {
		f.mu.Lock()
		f.missing[number] += ": " + err.Error()
		f.mu.Unlock()
	}
}

// heard notes an answer.
func (f *flooding) heard(number uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.missing[number]; ok {
		delete(f.missing, number)
		f.back++
	}
}

// flood sends a datagram to each target each millisecond, which come back from wherever
// the targets are. stop tells which did not, within a second at last.
func flood(t *testing.T, from place, targets []netip.Addr, spaces ...place) *flooding {
	t.Helper()
	open := func(at place, port int) (c *net.UDPConn) {
		t.Helper()
		err := at.table.Do(at.key, func() (err error) { c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}); return err })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var answering, asking sync.WaitGroup
	var echoes []*net.UDPConn
	port := 0
	for _, s := range spaces {
		c := open(s, port)
		port = c.LocalAddr().(*net.UDPAddr).Port
		echoes = append(echoes, c)
		answering.Go(func() {
			packet := make([]byte, 8)
			for {
				n, from, err := c.ReadFromUDPAddrPort(packet)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort(packet[:n], from) // what is lost is counted
			}
		})
	}
	f := &flooding{missing: make(map[uint64]string)}
	asker, end := open(from, 0), make(chan struct{})
	asking.Go(func() {
		packet := make([]byte, 8)
		for {
			n, _, err := asker.ReadFromUDPAddrPort(packet)
			if err != nil {
				return
			}
			if n == len(packet) {
				f.heard(binary.BigEndian.Uint64(packet))
			}
		}
	})
	asking.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				_ = asker.SetReadDeadline(time.Now().Add(time.Second))
				return
			case <-tick.C:
			}
			for _, target := range targets {
				f.send(asker, netip.AddrPortFrom(target, uint16(port)))
			}
		}
	})
	f.stop = sync.OnceValues(func() (int, []string) {
		close(end)
		asking.Wait()
		for _, c := range append(echoes, asker) {
			c.Close()
		}
		answering.Wait()
		return int(f.sent), slices.Sorted(maps.Values(f.missing))
	})
	t.Cleanup(func() { f.stop() })
	return f
}

// stream is a TCP connection between two places.
func stream(t *testing.T, from, to place, at netip.Addr) (near, far net.Conn) {
	t.Helper()
	var l net.Listener
	err := to.table.Do(to.key, func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = from.table.Do(from.key, func() (err error) { near, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second); return err })
	if err == nil {
		far, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return near, far
}
