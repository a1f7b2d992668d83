// SPDX-License-Identifier: Apache-2.0

package echo_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/echo"
	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

type socket interface {
	Send(seq uint16) error
	Receive() (seq uint16, ok bool)
	Close() error
}

// kinds are the sockets of the kernel and their twins.
var kinds = []struct {
	name string
	open func(netns *os.File, from, to netip.Addr) (socket, error)
}{
	{"kernel", func(netns *os.File, from, to netip.Addr) (socket, error) { return echo.Open(netns, from, to) }},
	{"memory", func(netns *os.File, from, to netip.Addr) (socket, error) {
		return new(memecho.Air).Open(netns, from, to)
	}},
}

func space(t *testing.T) *os.File {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644); err != nil {
		t.Skipf("ping sockets cannot be allowed here: %v", err)
	}
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	return netns
}

// Each request is answered once, with its number, in both families; a socket hears
// nothing of another one's.
func TestAnswers(t *testing.T) {
	netns := space(t)
	for _, kind := range kinds {
		for _, text := range []string{"127.0.0.1", "::1"} {
			t.Run(kind.name+" "+text, func(t *testing.T) {
				addr := netip.MustParseAddr(text)
				s, err := kind.open(netns, addr, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				other, err := kind.open(netns, addr, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				if seq, ok := s.Receive(); ok {
					t.Errorf("answer %d to nothing", seq)
				}
				want := []uint16{1, 2, 65535, 0}
				for _, seq := range want {
					if err := s.Send(seq); err != nil {
						t.Fatal(err)
					}
				}
				for _, seq := range want {
					if got := await(t, s); got != seq {
						t.Errorf("answer %d, want %d", got, seq)
					}
				}
				if seq, ok := other.Receive(); ok {
					t.Errorf("the other socket hears answer %d", seq)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("closed twice: %v", err)
				}
				if err := s.Send(1); err == nil {
					t.Error("a closed socket sends")
				}
				if _, ok := s.Receive(); ok {
					t.Error("a closed socket receives")
				}
			})
		}
	}
}

// await returns the next answer. The loopback answers while Send runs, but for a
// softirq that is late.
func await(t *testing.T, s socket) uint16 {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if seq, ok := s.Receive(); ok {
			return seq
		}
		if time.Now().After(deadline) {
			t.Fatal("no answer")
		}
	}
}

// Where there is no way, sending fails for good, and other than for want of buffers.
func TestNoWay(t *testing.T) {
	netns := space(t)
	if s, err := echo.Open(netns, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")); err == nil {
		s.Close()
		t.Error("bound to an address that nobody has")
	}
	// lo has no route to there.
	if s, err := echo.Open(netns, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.2")); err == nil {
		defer s.Close()
		if err := s.Send(1); err == nil || err == echo.ErrNotSent {
			t.Errorf("sent nowhere: %v", err)
		}
	}
}
