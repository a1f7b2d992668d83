// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Wires are made, led elsewhere, listed and deleted; the tunnel stays. None of them needs
// a goroutine.
func TestWires(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	c := newTestClient(t, table, socket)
	ctx := t.Context()
	if tunnel, wires, err := c.Wires(ctx, ""); err != nil || tunnel.Node != 0 || wires != nil {
		t.Fatalf("without a holder: %v, %v, %v", tunnel, wires, err)
	}
	tunnel, err := c.OpenTunnel(ctx, 7)
	if err != nil || tunnel.Node != 7 || tunnel.UAPI != DeviceName(socket, tunnelTag) {
		t.Fatalf("opened %+v, %v", tunnel, err)
	}
	if again, err := c.OpenTunnel(ctx, 8); err != nil || again != tunnel {
		t.Errorf("opened again: %+v, %v", again, err)
	}
	if tunnel, wires, err := c.Wires(ctx, ""); err != nil || tunnel.Node != 7 || wires != nil {
		t.Errorf("without wires: %v, %v, %v", tunnel, wires, err)
	}
	before, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const many = 20
	var adding sync.WaitGroup
	for i := range many {
		adding.Go(func() {
			w := Wire{Tag: fmt.Sprint("w", i), Name: fmt.Sprint("nsm-", i), MTU: 1400, Ethernet: i%2 == 1, Local: uint32(i + 1)}
			for range 2 { // asking twice is harmless
				if err := c.AddWire(ctx, ns, w); err != nil {
					t.Error(err)
				}
			}
		})
	}
	adding.Wait()
	after, err := c.Status(ctx)
	if err != nil || after.Wires != many || after.Devices != 0 {
		t.Errorf("status %+v, %v", after, err)
	}
	if after.Goroutines > before.Goroutines+5 { // of connections to this test
		t.Errorf("%d goroutines with %d wires, %d without", after.Goroutines, many, before.Goroutines)
	}
	if left, err := c.PointWire(ctx, "w0", 9, 4); err != nil || left != nil {
		t.Errorf("led somewhere: %v, %v", left, err)
	}
	if left, err := c.PointWire(ctx, "w1", 9, 5); err != nil || left != nil {
		t.Errorf("led somewhere: %v, %v", left, err)
	}
	if left, err := c.PointWire(ctx, "w1", 10, 5); err != nil || left == nil || *left != (Left{Peer: 9, Wires: 1}) {
		t.Errorf("led elsewhere: %v, %v", left, err)
	}
	want := Wire{Tag: "w1", Name: "nsm-1", NetNS: ns.Key(), MTU: 1400, Ethernet: true, Local: 2, Remote: 5, Peer: 10}
	if _, wires, err := c.Wires(ctx, "w1"); err != nil || len(wires) != 1 || wires[0] != want || !wires[0].Last().IsZero() {
		t.Errorf("wire %+v, %v, want %+v", wires, err, want)
	}
	if _, wires, err := c.Wires(ctx, ""); err != nil || len(wires) != many || wires[0].Tag != "w0" {
		t.Errorf("%d wires, %v", len(wires), err)
	}
	if left, err := c.Drop(ctx, "w0"); err != nil || left == nil || *left != (Left{Peer: 9}) {
		t.Errorf("dropped: %v, %v", left, err)
	}
	if linkExists(t, ns, "nsm-0") || !linkExists(t, ns, "nsm-1") {
		t.Error("the wrong interface is gone")
	}
	if err := c.Delete(ctx, "w0"); err != nil {
		t.Errorf("deleted again: %v", err)
	}
}

// A wire that is asked for elsewhere, or as another, takes the place of the one with its
// tag, which may be a device.
func TestWireTakesThePlace(t *testing.T) {
	table := underlay(t)
	ns, other := workload(t, table), workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	ctx := t.Context()
	if _, err := c.OpenTunnel(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, ns, "w", "nsm-1", 1400); err != nil {
		t.Fatal(err)
	}
	w := Wire{Tag: "w", Name: "nsm-1", MTU: 1400, Local: 1}
	for i, change := range []func(){
		func() {}, func() { w.Name = "nsm-2" }, func() { w.Local = 2 }, func() { w.Ethernet = true }, func() { ns = other },
	} {
		change()
		if err := c.AddWire(ctx, ns, w); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		_, wires, err := c.Wires(ctx, "")
		if err != nil || len(wires) != 1 || !wires[0].sameAs(Wire{Name: w.Name, NetNS: ns.Key(), Ethernet: w.Ethernet, Local: w.Local}) {
			t.Errorf("change %d: wires %+v, %v", i, wires, err)
		}
	}
	if devices, err := c.List(ctx); err != nil || len(devices) != 0 {
		t.Errorf("devices %v, %v", devices, err)
	}
}

// A wire whose interface somebody deletes is forgotten, and can be made again.
func TestWireIsDeletedInside(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	ctx := t.Context()
	if _, err := c.OpenTunnel(ctx, 7); err != nil {
		t.Fatal(err)
	}
	w := Wire{Tag: "w", Name: "nsm-1", MTU: 1400, Local: 1}
	if err := c.AddWire(ctx, ns, w); err != nil {
		t.Fatal(err)
	}
	deleteLink(t, ns, "nsm-1")
	for {
		_, wires, err := c.Wires(ctx, "w")
		if err != nil {
			t.Fatal(err)
		}
		if len(wires) == 0 {
			break
		}
	}
	if err := c.AddWire(ctx, ns, w); err != nil || !linkExists(t, ns, "nsm-1") {
		t.Errorf("made again: %v", err)
	}
}

func TestWireRefuses(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	ctx := t.Context()
	w := Wire{Tag: "w", Name: "nsm-1", MTU: 1400, Local: 1}
	if err := c.AddWire(ctx, ns, w); !errors.Is(err, nserr.BadRequest) {
		t.Errorf("without a tunnel: %v", err)
	}
	if _, err := c.OpenTunnel(ctx, 0); !errors.Is(err, nserr.Unsupported) {
		t.Errorf("a tunnel without an id: %v", err)
	}
	if _, err := c.OpenTunnel(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if err := c.AddWire(ctx, ns, w); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		spoil func(*Wire)
		want  *nserr.Reason
	}{
		"no tag":         {func(w *Wire) { w.Tag = "" }, nserr.BadRequest},
		"the tunnel's":   {func(w *Wire) { w.Tag = tunnelTag }, nserr.BadRequest},
		"no number":      {func(w *Wire) { w.Local = 0 }, nserr.BadRequest},
		"name taken":     {func(w *Wire) { w.Local = 2 }, nserr.NameTaken},
		"bad name":       {func(w *Wire) { w.Name, w.Local = "a/b", 2 }, nserr.BadName},
		"another number": {func(w *Wire) { w.Name = "nsm-2" }, nserr.Internal},
	} {
		other := w
		other.Tag = "other"
		tt.spoil(&other)
		if err := c.AddWire(ctx, ns, other); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want.Code)
		}
		if _, wires, err := c.Wires(ctx, ""); err != nil || len(wires) != 1 {
			t.Errorf("%s: wires %v, %v", name, wires, err)
		}
	}
	if _, err := c.PointWire(ctx, "none", 1, 1); !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("a wire that there is not: %v", err)
	}
}
