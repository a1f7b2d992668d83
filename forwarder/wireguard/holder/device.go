// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// uapiDir is where WireGuard's tools look for userspace devices
// (wireguard.com/xplatform).
const uapiDir = "/var/run/wireguard"

var base32Lower = base32.StdEncoding.WithPadding(base32.NoPadding)

func hash(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32Lower.EncodeToString(sum[:]))[:n]
}

// DeviceName returns the name under which wgctrl and `wg` find the device with
// this tag of the holder at this socket path. It has 15 characters, as many as
// the kernel's configuration interface, which wgctrl asks first, accepts in a
// name.
func DeviceName(socket, tag string) string { return namePrefix(socket) + hash(tag, 8) }

// namePrefix begins the names of all devices of one holder.
func namePrefix(socket string) string { return "nsm" + hash(filepath.Clean(socket), 4) }

// ConfigPath returns where the device with this name is configured.
func ConfigPath(name string) string { return filepath.Join(uapiDir, name+".sock") }

// device is a running WireGuard device.
//
// It ends by close, or by itself when the interface has been deleted in its
// namespace; gone is closed when all of it is freed.
type device struct {
	Device
	tun  link
	wg   *wg.Device
	uapi *net.UnixListener
	bufs *buffers
	mem  arena // lent by bufs
	gone chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]struct{} // open configuration connections; nil when closing
}

// newDevice creates the interface name in namespace ns and runs a WireGuard
// device on it, whose configuration socket is at ConfigPath(d.UAPI). The UDP
// sockets are opened in this process's namespace. On failure nothing is left
// behind.
func newDevice(ns *netns.Handle, d Device, bufs *buffers, log *slog.Logger) (*device, error) {
	listener, err := listenUAPI(d.UAPI)
	if err != nil {
		return nil, err
	}
	var tunnel *tunnel
	err = ns.Do(func() (err error) {
		tunnel, err = createTUN(d.Name, d.MTU, &bufs.scratch)
		return err
	})
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	return startDevice(d, tunnel, listener, bufs, log), nil
}

// link is what a WireGuard device reads packets from and writes them to.
type link interface {
	tun.Device
	refresh() // looks for what has changed; called whenever the device is configured or read
}

// gate is a link as wireguard-go is given it.
type gate struct {
	link
	made chan struct{} // closed when there is a WireGuard device
	lend func()        // gives the device the buffers of the reader, once; set before made is closed
}

// BatchSize returns how many packets one Read or Write takes. It is the first that
// wireguard-go's reader asks, right before it takes its buffers.
func (g *gate) BatchSize() int {
	<-g.made
	g.lend()
	return g.link.BatchSize()
}

// startDevice runs a WireGuard device on a link, configured through listener.
func startDevice(d Device, l link, listener *net.UnixListener, bufs *buffers, log *slog.Logger) *device {
	g := &gate{link: l, made: make(chan struct{})}
	b := newBind()
	dev := &device{
		Device: d,
		tun:    l,
		wg:     wg.NewDevice(g, b, quiet(log)),
		uapi:   listener,
		bufs:   bufs,
		mem:    bufs.take(),
		gone:   make(chan struct{}),
		conns:  map[net.Conn]struct{}{},
	}
	b.lend = sync.OnceFunc(func() { dev.mem.lend(dev.wg, 0, receivers) })
	g.lend = sync.OnceFunc(func() { dev.mem.lend(dev.wg, receivers, 1) })
	close(g.made)
	// The interface's own state is the forwarder's business; WireGuard's follows
	// its configuration, see answer.
	go dev.serve()
	return dev
}

// listenUAPI opens the configuration socket for name. A file left behind by a
// holder that was killed is replaced; a socket that answers is not.
func listenUAPI(name string) (*net.UnixListener, error) {
	if err := os.MkdirAll(uapiDir, 0o755); err != nil {
		return nil, nserr.StateDir.Errorf("%w", err)
	}
	path := ConfigPath(name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, unix.EADDRINUSE) && removeStale(path) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	}
	if err != nil {
		return nil, nserr.AddressInUse.Errorf("WireGuard configuration socket: %w", err)
	}
	return l, nil
}

// removeStale removes the socket file at path if nobody listens there any
// more, and reports whether it did.
func removeStale(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return false
	}
	return errors.Is(err, unix.ECONNREFUSED) && os.Remove(path) == nil
}

// serve answers configuration connections until the device ends, then frees
// everything.
func (d *device) serve() {
	var running sync.WaitGroup
	running.Go(func() {
		<-d.wg.Wait() // closed by us, or by itself when the interface is gone
		_ = d.uapi.Close()
		d.mu.Lock()
		for c := range d.conns {
			_ = c.Close()
		}
		d.conns = nil
		d.mu.Unlock()
	})
	for {
		c, err := d.uapi.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil { // out of descriptors: try again shortly
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if d.track(c) {
			running.Go(func() {
				d.tun.refresh()
				d.answer(c) // closes c
				d.untrack(c)
			})
		}
	}
	running.Wait()
	d.bufs.takeBack(d.mem)
	close(d.gone)
}

// track remembers c, or closes it when the device is ending.
func (d *device) track(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns == nil {
		_ = c.Close()
		return false
	}
	d.conns[c] = struct{}{}
	return true
}

func (d *device) untrack(c net.Conn) {
	d.mu.Lock()
	delete(d.conns, c)
	d.mu.Unlock()
}

// close deletes the device and waits until all of it is freed.
func (d *device) close() {
	d.wg.Close()
	<-d.gone
}

// quiet passes wireguard-go's errors on to log, at most one every ten seconds:
// it would write one for every packet while the underlay is unreachable. That a peer cannot be
// called is none: it calls.
func quiet(log *slog.Logger) *wg.Logger {
	const interval = 10 * time.Second
	var (
		mu         sync.Mutex
		last       time.Time
		suppressed int
	)
	return &wg.Logger{
		Verbosef: wg.DiscardLogf,
		Errorf: func(format string, args ...any) {
			said := fmt.Sprintf(format, args...)
			if strings.HasSuffix(said, "no known endpoint for peer") {
				return
			}
			mu.Lock()
			now := time.Now()
			if now.Sub(last) < interval {
				suppressed++
				mu.Unlock()
				return
			}
			n := suppressed
			last, suppressed = now, 0
			mu.Unlock()
			log.LogAttrs(context.Background(), slog.LevelWarn, said, slog.Int("suppressed", n))
		},
	}
}

// alive reports whether the device's interface still exists.
func (d *device) alive() bool {
	select {
	case <-d.wg.Wait():
		return false
	default:
		_, err := d.tun.MTU()
		return err == nil
	}
}
