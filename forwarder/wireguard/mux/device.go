// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/sdk/nserr"
)

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

// Device implements tun.Device for many wires. It is safe for concurrent use.
//
// No wire has a goroutine or a buffer of its own. All descriptors are in one epoll
// set, which wakes Go's network poller and by it the one reader.
type Device struct {
	cfg    Config
	epoll  *os.File
	events chan tun.Event

	reader  reader
	scratch Scratch
	strays  atomic.Uint64
	closing sync.Once

	// mu guards wires and, as long as it is held, the descriptors of those in it. It
	// is held over reads and writes, which do not block, not while waiting or closing.
	mu    sync.RWMutex
	wires map[uint32]*wire // by local number; nil: closed
}

var _ tun.Device = (*Device)(nil)

// New returns a Device without wires. Close must be called; wireguard-go does so.
func New(cfg Config) (*Device, error) {
	if cfg.NodeID == 0 || cfg.MTU <= Overhead || cfg.MTU > maxLength {
		return nil, nserr.Internal.Errorf("node id %d, MTU %d", cfg.NodeID, cfg.MTU)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, nserr.KernelFailed.Errorf("epoll_create1: %w", err)
	}
	_ = unix.SetNonblock(fd, true) // by which os.NewFile knows that it can be waited for
	d := &Device{
		cfg:    cfg,
		epoll:  os.NewFile(uintptr(fd), "wires"),
		events: make(chan tun.Event),
		wires:  make(map[uint32]*wire),
	}
	raw, err := d.epoll.SyscallConn()
	if err != nil {
		_ = d.epoll.Close()
		return nil, nserr.KernelFailed.Errorf("epoll set: %w", err)
	}
	d.reader.init(raw)
	return d, nil
}

// Add adds a wire. It fails with nserr.Internal if there is one with that local number
// and with nserr.BadMechanism if the descriptor is not what it should be. The
// descriptor is closed then.
func (d *Device) Add(w Wire) error {
	added, err := newWire(w)
	if err == nil {
		err = d.add(added)
	}
	if err != nil {
		_ = unix.Close(w.FD)
	}
	return err
}

func (d *Device) add(w *wire) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.wires == nil:
		return nserr.Stopping.Errorf("WireGuard device: %w", os.ErrClosed)
	case d.wires[w.local] != nil:
		return nserr.Internal.Errorf("there is a wire with the number %d", w.local)
	}
	if err := d.watch(unix.EPOLL_CTL_ADD, w); err != nil {
		return nserr.KernelFailed.Errorf("epoll_ctl: %w", err)
	}
	d.wires[w.local] = w
	return nil
}

// watch puts a wire into the epoll set, or takes it out.
func (d *Device) watch(op int, w *wire) error {
	raw, err := d.epoll.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(epoll uintptr) {
		// What comes back by an event is the number, not the descriptor.
		err = unix.EpollCtl(int(epoll), op, w.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.local)})
	}), err)
}

// Point makes peer and remote the other end of a wire, in place: no packet is lost.
// It fails with nserr.UnknownWire if there is no such wire.
func (d *Device) Point(local, peer, remote uint32) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	w := d.wires[local]
	if w == nil {
		return nserr.UnknownWire.Errorf("there is no wire with the number %d", local)
	}
	w.far.Store(far(peer, remote))
	return nil
}

// Remove removes a wire and closes its descriptor, which deletes the interface unless
// it is persistent. One that does not exist is no error.
func (d *Device) Remove(local uint32) error {
	d.mu.RLock()
	w := d.wires[local]
	d.mu.RUnlock()
	if w == nil {
		return nil
	}
	_, err := d.remove(w)
	return err
}

// remove removes w, and reports whether nobody else had done so.
func (d *Device) remove(w *wire) (bool, error) {
	d.mu.Lock()
	mine := d.wires[w.local] == w
	if mine {
		delete(d.wires, w.local)
		_ = d.watch(unix.EPOLL_CTL_DEL, w)
	}
	d.mu.Unlock()
	if !mine {
		return false, nil
	}
	// Nobody uses the descriptor any more. This takes milliseconds: the kernel waits
	// until all processors have seen that the interface is gone.
	if err := unix.Close(w.fd); err != nil {
		return true, nserr.KernelFailed.Errorf("close of a TUN device: %w", err)
	}
	return true, nil
}

// Stats returns what has gone through a wire; false if there is none.
func (d *Device) Stats(local uint32) (Stats, bool) {
	d.mu.RLock()
	w := d.wires[local]
	d.mu.RUnlock()
	if w == nil {
		return Stats{}, false
	}
	return w.stats(), true
}

// Strays is how many packets have arrived that are for no wire: those under way when
// a wire was removed, and what makes no sense.
func (d *Device) Strays() uint64 { return d.strays.Load() }

// MTU returns Config.MTU.
func (d *Device) MTU() (int, error) { return d.cfg.MTU, nil }

// Events implements tun.Device. There are none: the MTU stays, and wires come and go
// without WireGuard being up or down. It ends with Close.
func (d *Device) Events() <-chan tun.Event { return d.events }

// Name implements tun.Device.
func (d *Device) Name() (string, error) { return "wires", nil }

// File implements tun.Device. There is not one file but many: nil.
func (d *Device) File() *os.File { return nil }

// BatchSize implements tun.Device: how many packets one Read or Write takes.
func (d *Device) BatchSize() int { return conn.IdealBatchSize }

// Close removes all wires and ends Read. It is idempotent.
func (d *Device) Close() error {
	var errs []error
	d.closing.Do(func() {
		d.mu.Lock()
		wires := d.wires
		d.wires = nil
		d.mu.Unlock()
		errs = append(errs, d.epoll.Close())
		for _, w := range wires {
			errs = append(errs, unix.Close(w.fd))
		}
		close(d.events)
	})
	return errors.Join(errs...)
}
