// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A WireGuard wire across nodes, by the backend that this machine has.
func TestWireGuard(t *testing.T) {
	if wireguard.Probe() != nil {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			t.Skipf("neither WireGuard module nor TUN devices here: %v", err)
		}
	}
	for name, underlay := range map[string][2]string{
		"over IPv4": {"172.16.0.1", "172.16.0.2"}, "over IPv6": {"fd16::1", "fd16::2"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newNode(t, "fwd"), newNode(t, "fwd")
			connect(t, a, b)
			a.useWireGuard(t)
			b.useWireGuard(t)
			client, endpoint := a.workload(), b.workload()
			before := a.census(client)
			wa := wireGuardWire(t, "u1", client, 1, underlay[1])
			wb := wireGuardWire(t, "u2", endpoint, 2, underlay[0])
			wa.WireGuard.PeerKey, wb.WireGuard.PeerKey = publicKey(wb), publicKey(wa)

			mustApply(t, b.Kernel, wb)
			mustApply(t, a.Kernel, wa)
			mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
			mustEcho(t, b, endpoint, "fd00::2", a, client, "fd00::1")
			if got, want := a.neighborsOf(client, "nsm-1"), []string{"0.0.0.0", "fd00::2"}; !slices.Equal(got, want) {
				t.Errorf("neighbours %v, want permanent ones only, %v", got, want)
			}
			for _, s := range []struct {
				n *node
				w plan.Wire
			}{{a, wa}, {b, wb}} {
				if steps := mustApply(t, s.n.Kernel, s.w); len(steps) != 0 {
					t.Errorf("applied again:\n%s", script(steps))
				}
			}
			key, port, ok := a.WireGuardKey(t.Context(), client, "u1")
			if key != wa.WireGuard.PrivateKey || port != 51820 || !ok {
				t.Errorf("read back: port %d, %v", port, ok)
			}
			if _, _, ok := a.WireGuardKey(t.Context(), client, "u9"); ok {
				t.Error("a key of a wire that does not exist")
			}
			seen, err := a.Observe(t.Context(), wa)
			if err != nil {
				t.Fatal(err)
			}
			if e := seen.Ends[0]; e.LastHandshake.IsZero() || e.Counters.RxPackets == 0 || e.MTU != 1400 {
				t.Errorf("observed %+v", e)
			}

			// A new key at both ends, as after the peer's restart without its state, and
			// not sooner than WireGuard takes another initiation of a peer, 20 ms. Packets
			// flow meanwhile.
			for taken := time.Now().Add(25 * time.Millisecond); time.Now().Before(taken); {
				mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
			}
			wb.WireGuard.PrivateKey = newKey(t)
			wa.WireGuard.PeerKey = publicKey(wb)
			// The far end first, as in a Request: an initiation that the other
			// does not understand yet is sent again only after five seconds.
			mustApply(t, b.Kernel, wb)
			mustApply(t, a.Kernel, wa)
			mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")

			for range 2 {
				if err := errors.Join(a.Remove(t.Context(), wa), b.Remove(t.Context(), wb)); err != nil {
					t.Fatal(err)
				}
				if _, _, ok := a.WireGuardKey(t.Context(), client, "u1"); ok {
					t.Error("a key of a wire that has been removed")
				}
			}
			if after := a.census(client); before != after {
				t.Errorf("before %+v, after %+v", before, after)
			}

			// A failure after the device was made.
			wa.Ends[0].Routes = append(wa.Ends[0].Routes, plan.Route{Dst: prefixes("192.0.2.0/24")[0], Via: netip.MustParseAddr("203.0.113.1")})
			if _, err := a.Apply(t.Context(), wa); !errors.Is(err, nserr.KernelFailed) {
				t.Errorf("error is %v, want KernelFailed", err)
			}
			if after := a.census(client); before != after {
				t.Errorf("before %+v, after a failure %+v", before, after)
			}
		})
	}
}

// The link may go with its namespace while a holder still keeps the device.
func TestRemoveWireGuardAfterNamespaceDied(t *testing.T) {
	if wireguard.Probe() == nil {
		t.Skip("the module's devices go with their namespace, in the kernel's own time")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("neither WireGuard module nor TUN devices here: %v", err)
	}
	n := newNode(t, "fwd")
	n.useWireGuard(t)
	client := n.workload()
	w := wireGuardWire(t, "u1", client, 1, "172.16.0.2")
	w.WireGuard.PeerKey = newKey(t)
	mustApply(t, n.Kernel, w)
	n.table.Release(client)
	for range 2 {
		if err := n.Remove(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if !n.PortFree(51820) {
		t.Error("the device still has its port")
	}
}

// A device of userspace keeps the namespace of a client that was killed alive, and
// nothing else shows it. A forwarder that starts finds it where it is held.
func TestAdoptFindsDevicesOfTheDead(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices here: %v", err)
	}
	n := newNode(t, "fwd")
	socket := filepath.Join(t.TempDir(), "wg.sock")
	backend := n.useWireGuardAt(t, socket, true)
	client := exec.Command("sleep", "infinity")
	if client.Err != nil {
		t.Skip(client.Err)
	}
	client.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() {
		_ = client.Process.Kill()
		_ = client.Wait()
	})
	t.Cleanup(kill)
	f, err := netns.OfPID(client.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	key, err := n.table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	w := wireGuardWire(t, "u1", key, 1, "172.16.0.2")
	w.WireGuard.PeerKey = newKey(t)
	mustApply(t, n.Kernel, w)
	n.table.Release(key) // the forwarder dies
	kill()

	other := newKernel(t, "other", n.table)
	for _, k := range []*kernel.Kernel{n.Kernel, other} {
		found, err := k.FindLinks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if k == other {
			if len(found) != 0 {
				t.Errorf("another forwarder has found %+v", found)
			}
			continue
		}
		want := plan.Found{Tag: plan.Tag{Owner: "fwd", ID: "u1", Side: plan.Client}, NetNS: key, Name: "nsm-1", LinkKind: "tun", Hidden: true}
		if len(found) != 1 || found[0] != want {
			t.Fatalf("found %+v, want %+v", found, want)
		}
		if err := k.Remove(t.Context(), plan.Wires(found)[0]); err != nil {
			t.Error(err)
		}
	}
	if devices, err := backend.Devices(t.Context()); err != nil || len(devices) != 0 {
		t.Errorf("left are %+v, %v", devices, err)
	}
	if !n.PortFree(51820) {
		t.Error("the device still has its port")
	}
}

// What another backend has made is replaced, and removed.
func TestWireGuardChangesBackend(t *testing.T) {
	if err := wireguard.Probe(); err != nil {
		t.Skipf("%v; run test/vm/run.sh ./forwarder/kernel -test.run WireGuard", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices here: %v", err)
	}
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	b.useWireGuard(t)
	client, endpoint := a.workload(), b.workload()
	before := a.census(client)
	wa, wb := wireGuardWire(t, "u1", client, 1, "172.16.0.2"), wireGuardWire(t, "u2", endpoint, 2, "172.16.0.1")
	wa.WireGuard.PeerKey, wb.WireGuard.PeerKey = publicKey(wb), publicKey(wa)
	mustApply(t, b.Kernel, wb)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	var backend wireguard.Backend
	for _, userspace := range []bool{true, false, true, false} {
		if backend != nil {
			backend.Close() // the forwarder dies
		}
		backend = a.useWireGuardAt(t, socket, userspace)
		mustApply(t, a.Kernel, wa)
		if steps := mustApply(t, a.Kernel, wa); len(steps) != 0 {
			t.Errorf("userspace %v, applied again:\n%s", userspace, script(steps))
		}
		seen, err := a.Observe(t.Context(), wa)
		if err != nil || seen.Ends[0].LinkKind != backend.Kind() {
			t.Fatalf("userspace %v: observed %+v, %v", userspace, seen, err)
		}
		mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
		devices, err := backend.Devices(t.Context())
		if want := map[bool]int{true: 1}[userspace]; err != nil || len(devices) != want {
			t.Errorf("userspace %v: the holder has %+v, %v; want %d", userspace, devices, err, want)
		}
	}
	a.useWireGuardAt(t, socket, true)
	if err := errors.Join(a.Remove(t.Context(), wa), b.Remove(t.Context(), wb)); err != nil {
		t.Fatal(err)
	}
	if after := a.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func TestWireGuardNeedsABackend(t *testing.T) {
	n := newNode(t, "fwd")
	w := plan.Wire{ID: "u1", Kind: plan.KindWireGuard, Payload: plan.IP,
		WireGuard: &plan.WireGuard{PrivateKey: [32]byte{1}, PeerKey: [32]byte{2}},
		Ends:      []plan.End{{NetNS: n.workload(), Name: "nsm-1", Side: plan.Client}}}
	if _, err := n.Apply(t.Context(), w); !errors.Is(err, nserr.Unsupported) {
		t.Errorf("without a backend: %v, want Unsupported", err)
	}
	if err := n.Remove(t.Context(), w); err != nil {
		t.Errorf("Remove without a backend: %v", err)
	}
	if _, _, ok := n.WireGuardKey(t.Context(), w.Ends[0].NetNS, "u1"); ok {
		t.Error("found a key without a backend")
	}
}

// useWireGuard gives the node's kernel a WireGuard backend.
func (n *node) useWireGuard(t *testing.T) {
	n.useWireGuardAt(t, filepath.Join(t.TempDir(), "wg.sock"), false)
}

// useWireGuardAt does so with a given place for the holder, which stays there
// when the backend is another one.
func (n *node) useWireGuardAt(t *testing.T, socket string, userspace bool) wireguard.Backend {
	backend, err := wireguard.New(t.Context(), wireguard.Config{Namespaces: n.table, Socket: socket, Userspace: userspace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pid := 0
		if u, ok := backend.(*wireguard.Userspace); ok {
			if status, err := u.Holder().Status(context.Background()); err == nil {
				pid = status.PID
			}
		}
		backend.Close()
		if pid != 0 {
			terminate(t, pid)
		}
	})
	if n.Kernel, err = kernel.New(kernel.Config{Name: "fwd", Namespaces: n.table, WireGuard: backend}); err != nil {
		t.Fatal(err)
	}
	return backend
}

// terminate ends a holder and waits for it.
func terminate(t *testing.T, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it is gone
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((10 * time.Second).Milliseconds()))
	if ready != 1 {
		t.Errorf("holder %d does not end: %v", pid, err)
	}
}

// playHolder is what the test binary does when it is started as a holder.
func playHolder(socket string) {
	if err := holder.Main(context.Background(), holder.Config{Socket: socket}); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// wireGuardWire is the half at node number self (1 or 2) of a wire across
// nodes. It lacks its peer's key.
func wireGuardWire(t *testing.T, id, workload string, self int, peer string) plan.Wire {
	side := []plan.Side{plan.Client, plan.Endpoint}[self-1]
	w := plan.Wire{
		ID: id, Kind: plan.KindWireGuard, Payload: plan.IP,
		WireGuard: &plan.WireGuard{
			PrivateKey: newKey(t), Port: 51820, Keepalive: 10 * time.Second,
			Endpoint: netip.AddrPortFrom(netip.MustParseAddr(peer), 51820),
		},
		Ends: []plan.End{{NetNS: workload, Name: "nsm-1", Side: side, MTU: 1400}},
	}
	addAddrs(&w.Ends[0], 4, self, 3-self)
	addAddrs(&w.Ends[0], 6, self, 3-self)
	return w
}

func newKey(t *testing.T) [32]byte {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicKey(w plan.Wire) [32]byte {
	return wgtypes.Key(w.WireGuard.PrivateKey).PublicKey()
}

// A device may be made before its parameters are known. It waits, not up, and carries
// packets as soon as it has them.
func TestWireGuardWaits(t *testing.T) {
	if wireguard.Probe() != nil {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			t.Skipf("neither WireGuard module nor TUN devices here: %v", err)
		}
	}
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	a.useWireGuard(t)
	b.useWireGuard(t)
	client, endpoint := a.workload(), b.workload()
	before := a.census(client)
	wa := wireGuardWire(t, "u1", client, 1, "172.16.0.2")
	wb := wireGuardWire(t, "u2", endpoint, 2, "172.16.0.1")
	wa.WireGuard.PeerKey, wb.WireGuard.PeerKey = publicKey(wb), publicKey(wa)
	waits := wa
	waits.Ends = []plan.End{{NetNS: client, Name: wa.Ends[0].Name, Side: plan.Client, MTU: 1400}}
	waits.WireGuard = &plan.WireGuard{}

	mustApply(t, a.Kernel, waits)
	if steps := mustApply(t, a.Kernel, waits); len(steps) != 0 {
		t.Errorf("applied again:\n%s", script(steps))
	}
	seen, err := a.Observe(t.Context(), waits)
	if err != nil {
		t.Fatal(err)
	}
	if e := seen.Ends[0]; !e.Found || e.Up {
		t.Errorf("observed %+v, want it not up", e)
	}
	if _, _, ok := a.WireGuardKey(t.Context(), client, "u1"); ok {
		t.Error("a key of a device that has none")
	}
	mustApply(t, b.Kernel, wb)
	mustApply(t, a.Kernel, wa)
	mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
	if err := errors.Join(a.Remove(t.Context(), wa), b.Remove(t.Context(), wb)); err != nil {
		t.Fatal(err)
	}
	if after := a.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
