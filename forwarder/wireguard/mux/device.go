// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"log/slog"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// Overhead is what a wire has less of MTU than the device, in bytes: the header.
const Overhead = 20

// Config configures New.
type Config struct {
	// NodeID is the id of this node, not 0. See the package comment.
	NodeID uint32
	// MTU is the largest packet that WireGuard is to carry, header included, in bytes.
	MTU int
	// Gone, unless nil, is told that a wire has been removed because somebody has
	// deleted its interface. It is called from within Read, without locks: it must
	// not block, and may call the Device's methods.
	Gone   func(local uint32)
	Logger *slog.Logger // nil = slog.Default()
}

// Wire is one end of a wire.
type Wire struct {
	// FD is the descriptor of a TUN or TAP device, opened with IFF_NO_PI and
	// IFF_VNET_HDR. It belongs to the Device from the call of Add on, whatever the
	// outcome. Use a bare one: an os.File would have Go's poller wait for it as well.
	FD       int
	Ethernet bool   // it is a TAP device
	Local    uint32 // the number by which packets for this wire arrive
	Remote   uint32 // the number by which they arrive at the peer
	Peer     uint32 // the peer's node id; 0: not known yet, what is sent is dropped
}

// Stats is what has gone through a wire since Add.
type Stats struct {
	Sent, Received Count     // by the workload, to the workload; as packets, not as segments
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

// Device implements tun.Device for many wires. It is safe for concurrent use.
type Device struct {
	cfg Config
}

var _ tun.Device = (*Device)(nil)

// New returns a Device without wires. Close must be called; wireguard-go does so.
func New(cfg Config) (*Device, error) { return &Device{cfg: cfg}, nil }

// Add adds a wire. It fails with nserr.Internal if there is one with that local
// number, and then closes the descriptor.
func (d *Device) Add(w Wire) error { return nil }

// Point makes peer and remote the other end of a wire, in place: packets under way
// are not lost. It fails with nserr.UnknownWire if there is no such wire.
func (d *Device) Point(local, peer, remote uint32) error { return nil }

// Remove removes a wire and closes its descriptor, which deletes the interface unless
// it is persistent. One that does not exist is no error.
func (d *Device) Remove(local uint32) error { return nil }

// Stats returns what has gone through a wire; false if there is none.
func (d *Device) Stats(local uint32) (Stats, bool) { return Stats{}, false }

// Read implements tun.Device.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) { return 0, os.ErrClosed }

// Write implements tun.Device.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) { return 0, os.ErrClosed }

// MTU returns Config.MTU.
func (d *Device) MTU() (int, error) { return d.cfg.MTU, nil }

// Events implements tun.Device: the MTU does not change, and there is no up or down.
func (d *Device) Events() <-chan tun.Event { return nil }

// Name implements tun.Device.
func (d *Device) Name() (string, error) { return "nsm-mux", nil }

// File implements tun.Device: there is not one file but many.
func (d *Device) File() *os.File { return nil }

// BatchSize implements tun.Device.
func (d *Device) BatchSize() int { return 128 }

// Close removes all wires and ends Read. It is idempotent.
func (d *Device) Close() error { return nil }
