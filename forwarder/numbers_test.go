// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

func anyPort(uint16) bool { return true }

func TestVNIs(t *testing.T) {
	n := newNumbers(51820, anyPort)
	held := make(map[uint32]func())
	for i := range 1000 {
		vni, release := n.chooseVNI(uint32(i % 2))
		if vni == 0 || vni >= 1<<24 || vni&1 != uint32(i%2) || held[vni] != nil {
			t.Fatalf("VNI %d for parity %d", vni, i%2)
		}
		held[vni] = release
	}
	for vni, release := range held {
		if _, err := n.holdVNI(vni, false); !errors.Is(err, nserr.BadMechanism) {
			t.Errorf("a VNI that another wire has: %v", err)
		}
		again, err := n.holdVNI(vni, true)
		if err != nil {
			t.Fatal(err)
		}
		release()
		release() // once is enough
		if _, err := n.holdVNI(vni, false); err == nil {
			t.Error("free although the wire's next state holds it")
		}
		again()
	}
	if vnis, ports := n.held(); vnis != 0 || ports != 0 {
		t.Errorf("%d VNIs and %d ports are held", vnis, ports)
	}
	release, err := n.holdVNI(7, false)
	if err != nil {
		t.Errorf("a VNI that a peer chose: %v", err)
	}
	release()
}

func TestPorts(t *testing.T) {
	taken := map[uint16]bool{65530: true, 65533: true}
	n := newNumbers(65530, func(p uint16) bool { return !taken[p] })
	var mu sync.Mutex
	held := make(map[uint16]func())
	var choosing sync.WaitGroup
	for range 4 { // 65531, 65532, 65534, 65535
		choosing.Go(func() {
			port, release, err := n.choosePort()
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if held[port] != nil || taken[port] {
				t.Errorf("port %d is given twice, or taken", port)
			}
			held[port] = release
		})
	}
	choosing.Wait()
	if _, _, err := n.choosePort(); !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("without a free port: %v", err)
	}
	again := n.holdPort(65534) // the wire's next state
	held[65534]()
	if _, _, err := n.choosePort(); err == nil {
		t.Error("a port was given that a wire's next state holds")
	}
	again()
	port, release, err := n.choosePort()
	if err != nil || port != 65534 {
		t.Errorf("port %d, %v, want the one that is free again", port, err)
	}
	release()
	for p, release := range held {
		if p != 65534 {
			release()
		}
	}
	if vnis, ports := n.held(); vnis != 0 || ports != 0 {
		t.Errorf("%d VNIs and %d ports are held", vnis, ports)
	}
}

// The kernel answers in its own time; nobody waits for it who needs no port.
func TestNumbersDoNotWaitForTheKernel(t *testing.T) {
	var n *numbers
	n = newNumbers(51820, func(uint16) bool {
		if !n.mu.TryLock() {
			t.Error("the kernel is asked under the lock")
			return true
		}
		n.mu.Unlock()
		return true
	})
	_, release, err := n.choosePort()
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// Turns of services are counted apart, and however many names clients ask for the
// memory is bounded.
func TestTurns(t *testing.T) {
	turns := &turns{name: "f"}
	first := turns.next("db")
	if turns.next("web"); turns.next("db") != first+1 {
		t.Error("a turn of one service moved another")
	}
	for i := range 3 * maxServices {
		turns.next(fmt.Sprint(i))
	}
	if n := len(turns.byService); n > maxServices {
		t.Errorf("%d services are counted", n)
	}
}
