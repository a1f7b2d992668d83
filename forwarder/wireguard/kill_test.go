// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
)

// forwarderJob is what a child process that plays a forwarder must do. Its
// descriptors 3 and 4 are the namespaces of the underlay and the workload.
type forwarderJob struct {
	Socket, Tag string
	WireGuard   plan.WireGuard
}

// playForwarder makes one end of a wire, says so, and lives until killed.
func playForwarder(job string) error {
	var j forwarderJob
	if err := json.Unmarshal([]byte(job), &j); err != nil {
		return err
	}
	table, err := netns.NewTableAt(os.NewFile(3, "underlay"))
	if err != nil {
		return err
	}
	work, err := table.Add(os.NewFile(4, "workload"))
	if err != nil {
		return err
	}
	ns, err := table.Get(work)
	if err != nil {
		return err
	}
	ctx := context.Background()
	u, err := NewUserspace(ctx, holder.ClientConfig{Socket: j.Socket, Underlay: table.Self()})
	if err != nil {
		return err
	}
	if err := u.Create(ctx, ns, ifname, j.Tag, 1420); err != nil {
		return err
	}
	if err := u.Configure(ctx, ns, ifname, j.Tag, j.WireGuard); err != nil {
		return err
	}
	_, _ = os.Stdout.WriteString("up\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// Killing the forwarder and its whole process group while packets flow loses
// none; neither does the next one's adoption and configuration.
func TestForwarderKilled(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		if !userspace {
			t.Skip("the kernel's devices belong to no process")
		}
		a, b := newRig(t, userspace)
		b.wire(t)
		job, err := json.Marshal(forwarderJob{Socket: a.socket, Tag: a.tag, WireGuard: a.wg})
		must(t, err)
		child := exec.Command("/proc/self/exe", "forwarder", string(job))
		child.ExtraFiles = []*os.File{a.table.Self().File(), a.work.File()}
		child.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		child.Stderr = os.Stderr
		stdin, err := child.StdinPipe()
		must(t, err)
		defer stdin.Close()
		stdout, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		defer child.Wait()
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "up\n" {
			t.Fatalf("the forwarder said %q, %v", line, err)
		}
		up(t, a.work, ifname, netip.PrefixFrom(a.inner4, 24), netip.PrefixFrom(a.inner6, 64))

		c := dial(t, a.work, echo(t, b.work, b.inner4))
		roundTrip(t, c, "handshake")

		const packets, interval = 1000, time.Millisecond
		var received int
		var reader sync.WaitGroup
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		reader.Go(func() {
			buf := make([]byte, 64)
			for received < packets {
				if _, err := c.Read(buf); err != nil {
					return
				}
				received++
			}
		})
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := range packets {
			<-tick.C
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			switch i {
			case packets / 3:
				must(t, unix.Kill(-child.Process.Pid, unix.SIGKILL))
			case 2 * packets / 3:
				a.backend = a.newBackend(t, userspace)
				must(t, a.backend.Create(t.Context(), a.work, ifname, a.tag, 1420))
				must(t, a.backend.Configure(t.Context(), a.work, ifname, a.tag, a.wg))
			}
		}
		// Whatever is still on its way arrives at once; a lost packet never.
		must(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		reader.Wait()
		if received != packets {
			t.Errorf("%d of %d packets lost", packets-received, packets)
		}
	})
}
