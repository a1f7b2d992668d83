// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Freeze stops the process as it is (SIGSTOP) and waits until it stands still.
// Its peers see neither an answer nor an end.
func (p *Process) Freeze() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze %s: %w", p.Command, err)
	}
	// WNOWAIT leaves what is told to whoever waits for the end.
	err := retryInterrupted(func() error {
		return unix.Waitid(unix.P_PID, p.PID, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
	})
	if err != nil {
		return fmt.Errorf("freeze %s: %w", p.Command, err)
	}
	return nil
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error { return p.Signal(syscall.SIGCONT) }

func retryInterrupted(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Stranger is a process of the lab that one of its daemons has started.
type Stranger struct{ PID int }

// Holder returns the process that userspace WireGuard of the node runs in. It is
// there as soon as the node has had such a wire.
func (n *Node) Holder() (*Stranger, error) {
	ofUp := filepath.Join(n.state("up"), "wireguard.sock")
	for _, pid := range processesOf(n.lab.Name) {
		argv := argvOf(pid)
		if len(argv) == 4 && argv[1] == "wireguard-holder" && (argv[3] == n.HolderSocket() || argv[3] == ofUp) {
			return &Stranger{PID: pid}, nil
		}
	}
	return nil, fmt.Errorf("node %s has no holder of WireGuard devices", n.Name)
}

func argvOf(pid int) []string {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
}

// Kill ends the process with SIGKILL and waits for its end.
func (s *Stranger) Kill() error {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		return fmt.Errorf("kill process %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill process %d: %w", s.PID, err)
	}
	awaitEnd(fd, stopGrace)
	return nil
}

// Freeze stops the process as it is and waits until it stands still.
func (s *Stranger) Freeze() error {
	if err := unix.Kill(s.PID, unix.SIGSTOP); err != nil {
		return fmt.Errorf("freeze process %d: %w", s.PID, err)
	}
	tick := time.NewTicker(time.Millisecond) // who is no child's parent is told nothing
	defer tick.Stop()
	for range stopGrace / time.Millisecond {
		if stateOf(s.PID) == "T" {
			return nil
		}
		<-tick.C
	}
	return fmt.Errorf("freeze process %d: it is in the state %q", s.PID, stateOf(s.PID))
}

// stateOf is the third field of /proc/PID/stat, behind the name in parentheses.
func stateOf(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) == 0 {
		return ""
	}
	return f[0]
}

// Thaw lets a frozen process go on.
func (s *Stranger) Thaw() error { return unix.Kill(s.PID, unix.SIGCONT) }

// LinkDown breaks the node's link to the others. Between more than two nodes it
// pulls the cable out of the switch: the node keeps its addresses, and nobody
// else notices. One of two nodes switches its own end off.
func (n *Node) LinkDown() error { return n.setLink(netlink.LinkSetDown) }

// LinkUp undoes LinkDown.
func (n *Node) LinkUp() error {
	if err := n.setLink(netlink.LinkSetUp); err != nil {
		return err
	}
	if n.lab.hub != nil {
		return nil
	}
	// The kernel takes IPv6 addresses from a link that is switched off.
	return n.NetNS.AddAddress(Underlay, netip.PrefixFrom(n.Addr6, 64))
}

func (n *Node) setLink(set func(netlink.Link) error) error {
	ns, name := n.NetNS, Underlay
	if n.lab.hub != nil {
		ns, name = n.lab.hub, n.Name
	}
	return ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return set(link)
	})
}
