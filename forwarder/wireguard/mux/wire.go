// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Wire is one end of a wire.
type Wire struct {
	// FD is the descriptor of a TUN or TAP device, opened with IFF_NO_PI and
	// IFF_VNET_HDR. It belongs to the Device from the call of Add on, whatever the
	// outcome. Use a bare one: an os.File would have Go's poller wait for it as well.
	// As long as it is open the namespace lives in which it was opened.
	FD       int
	Ethernet bool   // it is a TAP device
	Local    uint32 // the number by which packets for this wire arrive
	Remote   uint32 // the number by which they arrive at the peer
	Peer     uint32 // the peer's node id; 0: not known yet, what is sent is dropped
}

// Stats is what has gone through a wire since Add.
type Stats struct {
	Sent, Received Count     // by the workload, to the workload; packets as they cross the underlay
	LastReceived   time.Time // zero: never
	Dropped        Drops
}

// Count counts packets and their bytes, without headers of WireGuard or ours.
type Count struct{ Packets, Bytes uint64 }

// Drops counts packets by the reason why they were dropped.
type Drops struct {
	NoPeer    uint64 // sent: the peer is not known yet
	TooLong   uint64 // sent: does not fit into a WireGuard message
	Malformed uint64 // sent: makes no sense
	Foreign   uint64 // received: from a node that is not the wire's peer
	Refused   uint64 // received: the kernel did not take it; the interface is down or full
}

// wire is a Wire in a Device.
type wire struct {
	fd       int
	ethernet bool
	udp      bool // the kernel takes and gives UDP in segments
	local    uint32
	far      atomic.Uint64 // peer and remote, see far

	queued bool // in reader.ready; of the reader alone

	sent, received                                 counter
	last                                           atomic.Int64 // nanoseconds of the wall clock; 0: never
	noPeer, tooLong, malformed, foreign, isRefused atomic.Uint64
}

type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(packets, bytes int) {
	c.packets.Add(uint64(packets))
	c.bytes.Add(uint64(bytes))
}

func (c *counter) load() Count { return Count{Packets: c.packets.Load(), Bytes: c.bytes.Load()} }

// far is the other end of a wire in one word, so that nobody sees half of a change.
func far(peer, remote uint32) uint64 { return uint64(peer)<<32 | uint64(remote) }

func newWire(w Wire) (*wire, error) {
	udp, err := prepare(w.FD, w.Ethernet)
	if err != nil {
		return nil, err
	}
	added := &wire{fd: w.FD, ethernet: w.Ethernet, udp: udp, local: w.Local}
	added.far.Store(far(w.Peer, w.Remote))
	return added, nil
}

// prepare sees to it that a descriptor does not block, and that the kernel hands over and
// takes segments by it: of TCP, and of UDP if udp.
func prepare(fd int, ethernet bool) (udp bool, err error) {
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		return false, nserr.BadMechanism.Errorf("descriptor %d is not of a TUN or TAP device: %w", fd, err)
	}
	want := uint16(unix.IFF_TUN)
	if ethernet {
		want = unix.IFF_TAP
	}
	want |= unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if got := ifr.Uint16(); got&(unix.IFF_TUN|unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR) != want {
		return false, nserr.BadMechanism.Errorf("TUN device %s has flags %#x, want %#x", ifr.Name(), got, want)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return false, nserr.KernelFailed.Errorf("TUN device %s: %w", ifr.Name(), err)
	}
	const (
		ofTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		ofUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6 // since Linux 6.2
	)
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, ofTCP|ofUDP) == nil {
		return true, nil
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, ofTCP); err != nil {
		return false, nserr.KernelFailed.Errorf("offloads of TUN device %s: %w", ifr.Name(), err)
	}
	return false, nil
}

func (w *wire) stats() Stats {
	s := Stats{
		Sent: w.sent.load(), Received: w.received.load(),
		Dropped: Drops{
			NoPeer: w.noPeer.Load(), TooLong: w.tooLong.Load(), Malformed: w.malformed.Load(),
			Foreign: w.foreign.Load(), Refused: w.isRefused.Load(),
		},
	}
	if t := w.last.Load(); t != 0 {
		s.LastReceived = time.Unix(0, t)
	}
	return s
}
