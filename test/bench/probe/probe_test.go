// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/test/bench/probe"
)

// A server is a process of its own, here as in a benchmark.
func TestMain(m *testing.M) {
	if address := os.Getenv("PROBE_TEST_SERVE"); address != "" {
		err := probe.Serve(netip.MustParseAddrPort(address), func() { fmt.Println("ready") })
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serve(t *testing.T, host string) (netip.AddrPort, int) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env, c.Stderr = append(os.Environ(), "PROBE_TEST_SERVE="+address.String()), os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return address, c.Process.Pid
}

func TestProbes(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			const d = 250 * time.Millisecond
			to, server := serve(t, host)
			pids := []int{os.Getpid(), server}
			for _, n := range []int{1, 8} {
				got, err := probe.Stream(to, n, d, pids)
				if err != nil {
					t.Fatal(err)
				}
				if got.Units == 0 || got.Elapsed < d || got.CPU <= 0 {
					t.Errorf("Stream with %d streams = %+v", n, got)
				}
			}
			rtt, err := probe.Ping(to, d)
			if err != nil {
				t.Fatal(err)
			}
			if rtt.N == 0 || rtt.P50 <= 0 || rtt.P50 > rtt.P99 {
				t.Errorf("Ping = %+v", rtt)
			}
			for _, size := range []int{64, 1400} {
				got, err := probe.Datagrams(to, size, d, pids)
				if err != nil {
					t.Fatal(err)
				}
				if got.Units == 0 || got.Elapsed < d {
					t.Errorf("Datagrams of %d bytes = %+v", size, got)
				}
			}
			s, err := probe.Datagram(map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[to.Addr().Is4()])
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(s)
			if sent, err := probe.Reply(s, to, d, 10*d); err != nil || sent != 1 {
				t.Errorf("Reply = %d, %v; want the first packet answered", sent, err)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	nobody := netip.MustParseAddrPort("127.0.0.1:9")
	if _, err := probe.Stream(nobody, 1, time.Millisecond, nil); err == nil {
		t.Error("Stream: no error")
	}
	if _, err := probe.Ping(nobody, time.Millisecond); err == nil {
		t.Error("Ping: no error")
	}
	if _, err := probe.Datagrams(nobody, 64, time.Millisecond, nil); err == nil {
		t.Error("Datagrams: no error")
	}
	s, err := probe.Datagram(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if _, err := probe.Reply(s, nobody, time.Millisecond, 5*time.Millisecond); err == nil {
		t.Error("Reply: no error")
	}
}

// The clock of a process is what its rusage says.
func TestCPU(t *testing.T) {
	for start := time.Now(); time.Since(start) < 20*time.Millisecond; {
	}
	got, err := probe.CPU([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	want := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	if diff := want - got; diff < -5*time.Millisecond || diff > 50*time.Millisecond {
		t.Errorf("CPU = %v, rusage %v", got, want)
	}
	if _, err := probe.CPU([]int{1 << 22}); err == nil {
		t.Error("a process beyond the largest PID (proc(5), pid_max): no error")
	}
}

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		n    int
		q    float64
		want int
	}{{1, 0.5, 1}, {2, 0.5, 1}, {3, 0.5, 2}, {100, 0.5, 50}, {100, 0.99, 99}, {100, 1, 100}, {100, 0, 1}, {10, 0.99, 10}} {
		sorted := make([]int, tc.n)
		for i := range sorted {
			sorted[i] = i + 1
		}
		if got := probe.Quantile(slices.Clone(sorted), tc.q); got != tc.want {
			t.Errorf("Quantile(1..%d, %v) = %d, want %d", tc.n, tc.q, got, tc.want)
		}
	}
}
