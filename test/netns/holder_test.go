// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// While the process stands still that userspace WireGuard runs in, who wants such a wire
// is told so in seconds, other wires can be had, and it is said once what is wrong.
func TestFrozenHolder(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	far := workload(t, b, "far")
	serve(t, far, "far", "--cidr", "10.60.2.0/24")
	serve(t, workload(t, a, "near"), "near", "--cidr", "10.60.1.0/24")
	serve(t, workload(t, b, "lan"), "lan", "--cidr", "10.60.3.0/24", "--payload", "ETHERNET")
	unchanged(t, l)
	web := workload(t, a, "web")
	w := connect(t, web, "kernel://far/nsm-1")
	holder, err := a.Holder()
	if err != nil {
		t.Skipf("WireGuard is the kernel's: %v", err)
	}
	if err := holder.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer holder.Thaw()

	const tooLong = 10 * time.Second // 3 s, and what a busy machine adds
	late := workload(t, a, "late")
	for i := range 3 {
		start := time.Now()
		p, err := late.StartNsm(t.Context(), "", "connect", "kernel://far/nsm-1")
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if took := time.Since(start); took > tooLong {
			t.Errorf("attempt %d took %s", i, took)
		}
		if fix := fmt.Sprintf("kill -CONT %d", holder.PID); p.ExitCode() != 5 || !strings.Contains(p.Output(), fix) {
			t.Errorf("ended with %d and does not say %q:\n%s", p.ExitCode(), fix, p.Output())
		}
	}
	start := time.Now()
	connect(t, workload(t, a, "near-client"), "kernel://near/nsm-1")
	connect(t, workload(t, a, "lan-client"), "kernel://lan/nsm-1")
	if took := time.Since(start); took > tooLong {
		t.Errorf("other wires took %s", took)
	}
	const says = "WireGuard holder runs and does not answer, its wires"
	if n := strings.Count(l.Daemon("a", "forwarder").Output(), says); n != 1 {
		t.Errorf("said %d times that the holder does not answer", n)
	}

	if err := holder.Thaw(); err != nil {
		t.Fatal(err)
	}
	connect(t, late, "kernel://far/nsm-1", "--wait", "20s")
	eventually(t, 20*time.Second, func() error { return transfer(web, far, w.far[0]) })
	if now, err := a.Holder(); err != nil || now.PID != holder.PID {
		t.Errorf("the holder is %v now, %v", now, err)
	}
}
