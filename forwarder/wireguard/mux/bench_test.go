// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/test/bench/probe"
)

// roleVar is set in the environment of a test binary that plays a role in a namespace.
const roleVar = "MUX_TEST_ROLE"

const probePort = 7411

// probing is one measurement.
type probing struct {
	Probe string // "stream", "ping" or "datagrams"
	N     int
	To    netip.AddrPort
	Time  time.Duration
}

// playRole runs this process in its role, if it has one, and exits.
func playRole() {
	var err error
	switch role := os.Getenv(roleVar); role {
	case "":
		return
	case "serve":
		err = probe.Serve(netip.AddrPortFrom(netip.IPv6Unspecified(), probePort), func() { fmt.Println("ready") })
	default:
		var value float64
		if value, err = probing.run(decode(role)); err == nil {
			fmt.Println(value)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func decode(role string) (p probing) {
	if err := json.Unmarshal([]byte(role), &p); err != nil {
		panic(err)
	}
	return p
}

// run returns what is better the larger it is.
func (p probing) run() (float64, error) {
	switch p.Probe {
	case "stream":
		t, err := probe.Stream(p.To, p.N, p.Time, nil)
		return t.PerSecond() * 8e-9, err
	case "ping":
		t, err := probe.Ping(p.To, p.Time)
		return 1 / t.P50.Seconds(), err
	default:
		t, err := probe.Datagrams(p.To, p.N, p.Time, nil)
		return t.PerSecond(), err
	}
}

// in starts this program in a role in a namespace.
func in(t testing.TB, ns *netns.Handle, role string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleVar+"="+role)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, ns.Do(c.Start))
	return c, bufio.NewReader(out)
}

// candidate is one way to carry a wire, ready to be measured.
type candidate struct {
	name string
	ns   *netns.Handle // of the client
	to   netip.AddrPort
}

func newCandidate(t testing.TB, name string, client, server end) candidate {
	t.Helper()
	c, out := in(t, server.ns, "serve")
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	_, err := out.ReadString('\n')
	must(t, err)
	to := netip.AddrPortFrom(server.addr4, probePort)
	// The first packets find no session of WireGuard, and no neighbour in a VXLAN.
	must(t, client.ns.Do(func() error {
		socket, err := probe.Datagram(unix.AF_INET)
		if err != nil {
			return err
		}
		_, err = probe.Reply(socket, to, 10*time.Millisecond, patience)
		return errors.Join(err, unix.Close(socket))
	}))
	return candidate{name, client.ns, to}
}

// figures are of one measurement: a rate, and the processor time that this process,
// where all WireGuard devices are, has spent for each thing counted.
type figures struct{ rate, cost float64 }

// measure runs a probe to its end.
func (c candidate) measure(t testing.TB, p probing) (f figures) {
	t.Helper()
	before, err := probe.CPU([]int{0})
	must(t, err)
	p.To = c.to
	role, err := json.Marshal(p)
	must(t, err)
	cmd, out := in(t, c.ns, string(role))
	line, _ := out.ReadString('\n')
	must(t, cmd.Wait())
	_, err = fmt.Sscan(line, &f.rate)
	must(t, err)
	after, err := probe.CPU([]int{0})
	must(t, err)
	f.cost = (after - before).Seconds() / f.rate
	return f
}

// ownDevice is a wire with a WireGuard device of its own at each end, which reads and writes
// packets as wireguard-go's own TUN device does or as newTUN's.
func ownDevice(t testing.TB, name string, newTUN func(testing.TB, int) tun.Device) candidate {
	ends := tunnel(t, newTUN)
	return newCandidate(t, name, ends[0], ends[1])
}

// nativeTUN is wireguard-go's own TUN device.
func nativeTUN(t testing.TB, fd int) tun.Device {
	t.Helper()
	must(t, unix.SetNonblock(fd, true))
	d, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	must(t, err)
	return d
}

// tunnel is two TUN devices with a WireGuard device each.
func tunnel(t testing.TB, newTUN func(testing.TB, int) tun.Device) (ends [2]end) {
	const all = "0.0.0.0/0\nallowed_ip=::/0"
	var devices [2]tun.Device
	for i := range ends {
		var fd int
		ends[i], fd = newEnd(t, false, byte(i+1), tunnelMTU)
		devices[i] = newTUN(t, fd)
	}
	join(t, devices[0], devices[1], all, all)
	return ends
}

// multiplexed is a wire of a Device.
func multiplexed(t testing.TB) candidate {
	a, b := newPair(t).wire(t, false)
	return newCandidate(t, "mux", a, b)
}

// vxlanInside is a wire as a VXLAN device of the kernel in a tunnel between two nodes.
func vxlanInside(t testing.TB) candidate {
	nodes := tunnel(t, nativeTUN)
	var ends [2]end
	for i := range ends {
		ends[i] = end{newNamespace(t), netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd01::%d", i+1))}
		must(t, nodes[i].ns.Do(func() error {
			return ends[i].ns.Control(func(fd int) error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.MTU, attrs.Namespace = ifname, tunnelMTU-50, netlink.NsFd(fd)
				return netlink.LinkAdd(&netlink.Vxlan{
					LinkAttrs: attrs, VxlanId: 77, Port: 4789,
					SrcAddr: net.IP(nodes[i].addr4.AsSlice()), Group: net.IP(nodes[1-i].addr4.AsSlice()),
				})
			})
		}))
		ends[i].up(t, tunnelMTU-50)
	}
	return newCandidate(t, "vxlan", ends[0], ends[1])
}

// BenchmarkWire measures one wire in each of the ways to carry it, by turns. What it
// reports are medians of ratios to a wire with a device of its own in the same round:
// of the rate, and of the processor time of this process for each thing carried, which
// depends less on what else the machine does. "own" has wireguard-go's own TUN device,
// "single" a Single. The control is a second wire with a device
// of its own: what its ratios are away from 1 is noise. Take -benchtime 15x.
func BenchmarkWire(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("makes TUN devices: needs root")
	}
	candidates := []candidate{ownDevice(b, "own", nativeTUN), multiplexed(b), vxlanInside(b), ownDevice(b, "single", singleTUN), ownDevice(b, "control", nativeTUN)}
	for _, p := range []struct {
		name string
		probing
	}{
		{"Gbit/s/1stream", probing{Probe: "stream", N: 1}},
		{"Gbit/s/8streams", probing{Probe: "stream", N: 8}},
		{"roundtrips/s", probing{Probe: "ping"}},
		{"packets/s/64B", probing{Probe: "datagrams", N: 64}},
		{"packets/s/1300B", probing{Probe: "datagrams", N: 1300}},
	} {
		b.Run(p.name, func(b *testing.B) {
			p.Time = 400 * time.Millisecond
			all := make([][]figures, len(candidates)) // by candidate and round
			for i := range all {
				all[i] = make([]figures, b.N)
			}
			for round := range b.N {
				for i := range candidates {
					which := (round + i) % len(candidates)
					all[which][round] = candidates[which].measure(b, p.probing)
				}
			}
			for i, c := range candidates {
				rates, costs := make([]float64, b.N), make([]float64, b.N)
				for round, f := range all[i] {
					rates[round], costs[round] = f.rate/all[0][round].rate, f.cost/all[0][round].cost
				}
				if i == 0 {
					continue
				}
				b.ReportMetric(median(rates), c.name+"/own")
				b.ReportMetric(median(costs), c.name+"/own-CPU")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
