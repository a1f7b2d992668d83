// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// DefaultIdle is how long a holder without devices and without a forwarder
// waits before it exits.
const DefaultIdle = time.Minute

// requestTimeout bounds the reading of one request and the writing of its
// reply, so that a stuck client costs no more than a connection for a while.
const requestTimeout = 10 * time.Second

// Config configures Main.
type Config struct {
	Socket string        // path of the Unix socket to serve on; also identifies the holder
	Idle   time.Duration // 0 = DefaultIdle
	Logger *slog.Logger  // nil = slog.Default()

	version int // that it says it has; 0 = protocolVersion
}

// Main runs a holder until ctx ends, SIGTERM or SIGINT arrives, or it has been
// idle for cfg.Idle. It returns nil at once when another holder serves the
// same socket.
//
// It owns the process: it ignores SIGHUP and SIGPIPE and sets the umask. When
// it serves, it writes "ready\n" to the standard output and gives that up.
func Main(ctx context.Context, cfg Config) error {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	unix.Umask(0o077) // sockets are for this user only

	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.version == 0 {
		cfg.version = protocolVersion
	}
	lock, err := lockSocket(cfg.Socket)
	if errors.Is(err, unix.EWOULDBLOCK) {
		cfg.Logger.Info("another WireGuard holder serves this socket", "address", cfg.Socket)
		return nil
	}
	if err != nil {
		return nserr.StateDir.Errorf("lock for the WireGuard holder: %w", err)
	}
	defer lock.Close() // last: the next holder may start only when all is gone

	namespaces, err := netns.NewTable()
	if err != nil {
		return err
	}
	defer namespaces.Close()
	sweep(namePrefix(cfg.Socket))
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nserr.StateDir.Errorf("stale socket of the WireGuard holder: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		return nserr.StateDir.Errorf("WireGuard holder: %w", err)
	}
	announceReady()

	s := newServer(cfg, namespaces)
	s.memory = newMemory(machineMemory(), debug.SetMemoryLimit(-1))
	s.memory.add(0)
	cfg.Logger.Info("WireGuard holder serves", "address", cfg.Socket, "pid", os.Getpid())
	s.run(ctx, listener)
	cfg.Logger.Info("WireGuard holder ends", "address", cfg.Socket)
	return nil
}

// lockSocket takes the lock that makes this the only holder of socket. It is
// released when the returned file is closed, also by the death of the process.
// The lock file stays: removing it would let two holders lock two files.
func lockSocket(socket string) (*os.File, error) {
	f, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes configuration sockets that an earlier holder of the same
// socket left behind when it was killed. The lock makes them ours alone.
func sweep(prefix string) {
	stale, err := filepath.Glob(ConfigPath(prefix + "*"))
	if err != nil {
		return
	}
	for _, path := range stale {
		removeStale(path)
	}
}

// announceReady tells whoever started this process that it serves, and lets go
// of the standard output.
func announceReady() {
	_, _ = io.WriteString(os.Stdout, "ready\n")
	if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
		_ = unix.Dup3(int(null.Fd()), 1, 0)
		_ = null.Close()
	}
}

// server answers the forwarder's requests.
type server struct {
	cfg        Config
	namespaces *netns.Table // those in which a device is being made
	buffers    buffers
	garbage    *time.Timer // runs while collections > 0
	idle       *time.Timer // runs while there is neither device nor forwarder

	mu          sync.Mutex // guards the rest; never held across a system call that waits
	slots       map[string]*slot
	tunnel      *shared // nil: there is none
	conns       map[*net.UnixConn]struct{}
	memory      memory
	ended       int  // devices, since garbage was last known to be worth collecting
	collections int  // of garbage that are due
	forwarders  int  // attached
	stopping    bool // no more devices are made

	running sync.WaitGroup // connections and device watchers
}

// slot is the place of the device, or the wire of the tunnel, with one tag. Whoever holds
// its turn may create or delete them; users counts those who hold or want the turn.
type slot struct {
	turn  chan struct{} // capacity 1
	dev   *device       // nil: none; guarded by server.mu, changed only with the turn
	wire  *Wire         // nil: none; guarded by server.mu, changed only with the turn, or by wireGone
	users int           // guarded by server.mu
}

func newServer(cfg Config, namespaces *netns.Table) *server {
	return &server{
		cfg:        cfg,
		namespaces: namespaces,
		garbage:    stoppedTimer(),
		idle:       time.NewTimer(cfg.Idle),
		slots:      map[string]*slot{},
		conns:      map[*net.UnixConn]struct{}{},
	}
}

// run serves until ctx ends or the holder is idle, then deletes all devices.
func (s *server) run(ctx context.Context, listener *net.UnixListener) {
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		s.accept(listener)
	}()
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			waiting = false
		case <-s.garbage.C:
			s.collect()
		case <-s.idle.C:
			waiting = !s.stopIfIdle()
		}
	}

	_ = listener.Close() // removes the socket file
	<-accepting
	s.mu.Lock()
	s.stopping = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.deleteAll()
	s.closeTunnel()
	s.running.Wait()
	s.garbage.Stop()
	s.idle.Stop()
}

func (s *server) accept(listener *net.UnixListener) {
	for {
		c, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: the forwarder tries again, so do we
			s.cfg.Logger.Warn("WireGuard holder cannot accept", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.running.Go(func() {
			s.serve(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			_ = c.Close()
		})
	}
}

// serve answers the one request of a connection.
func (s *server) serve(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(requestTimeout))
	if err := samePeerUser(c); err != nil {
		_ = writeMessage(c, failure(err), nil)
		return
	}
	in := &rightsReader{conn: c}
	defer in.close()
	var req request
	if err := readMessage(in, &req); err != nil {
		if !errors.Is(err, io.EOF) {
			_ = writeMessage(c, failure(nserr.BadRequest.Errorf("%w", err)), nil)
		}
		return
	}
	if hungUp(c) { // it came while this process stood still: by now something else may be wanted
		return
	}
	if req.Op == opAttach {
		s.attach(c)
		return
	}
	if req.Op == opProfile {
		s.profile(c, &req)
		return
	}
	answer, err := s.answer(&req, in)
	if err != nil {
		answer = failure(err)
	}
	_ = c.SetDeadline(time.Now().Add(requestTimeout))
	_ = writeMessage(c, answer, nil)
}

func (s *server) answer(req *request, in *rightsReader) (*reply, error) {
	switch req.Op {
	case opPing:
		return &reply{Status: s.status()}, nil
	case opList:
		return &reply{Devices: s.list()}, nil
	case opDelete:
		return &reply{Left: s.remove(req.Tag)}, nil
	case opTunnel:
		t, err := s.openTunnel(req.Node)
		return &reply{Tunnel: t}, err
	case opPoint:
		left, err := s.point(req)
		return &reply{Left: left}, err
	case opWires:
		t, wires := s.wires(req.Tag)
		return &reply{Tunnel: t, Wires: wires}, nil
	case opWire:
		ns, err := in.namespace()
		if err != nil {
			return nil, err
		}
		return &reply{}, s.addWire(req, ns)
	case opCreate:
		ns, err := in.namespace()
		if err != nil {
			return nil, err
		}
		dev, err := s.create(req, ns)
		if err != nil {
			return nil, err
		}
		return &reply{Devices: []Device{dev}}, nil
	default:
		return nil, nserr.BadRequest.Errorf("operation %q", req.Op)
	}
}

// attach keeps the connection of a living forwarder open.
func (s *server) attach(c *net.UnixConn) {
	s.mu.Lock()
	s.forwarders++
	s.idleLocked()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.forwarders--
		s.idleLocked()
		s.mu.Unlock()
	}()
	if writeMessage(c, &reply{Status: s.status()}, nil) != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	var b [1]byte
	_, _ = c.Read(b[:]) // until the forwarder goes; it never writes
}

func (s *server) status() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	devices, wires := 0, 0
	for _, sl := range s.slots {
		if sl.dev != nil {
			devices++
		}
		if sl.wire != nil {
			wires++
		}
	}
	return &Status{
		Version:    s.cfg.version,
		PID:        os.Getpid(),
		Devices:    devices,
		Forwarders: s.forwarders,
		Goroutines: runtime.NumGoroutine(),
		Wires:      wires,
	}
}

func (s *server) list() []Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	var devices []Device
	for _, sl := range s.slots {
		if sl.dev != nil {
			devices = append(devices, sl.dev.Device)
		}
	}
	slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(a.Tag, b.Tag) })
	return devices
}

// create makes the device, or returns the one that is there already: asking
// twice is harmless. A device with this tag in another namespace, or under
// another name, is replaced. It takes ownership of file, the namespace.
func (s *server) create(req *request, file *os.File) (Device, error) {
	if req.Tag == "" {
		_ = file.Close()
		return Device{}, nserr.BadRequest.Errorf("no tag")
	}
	key, err := s.namespaces.Add(file)
	if err != nil {
		return Device{}, err
	}
	defer s.namespaces.Release(key)
	ns, err := s.namespaces.Get(key)
	if err != nil {
		return Device{}, err
	}
	want := Device{Tag: req.Tag, Name: req.Name, NetNS: key, UAPI: DeviceName(s.cfg.Socket, req.Tag), MTU: req.MTU}
	sl := s.take(req.Tag)
	defer s.release(req.Tag, sl)

	s.mu.Lock()
	old, stopping := sl.dev, s.stopping
	s.mu.Unlock()
	if stopping {
		return Device{}, nserr.Stopping.Errorf("WireGuard holder is ending")
	}
	if old != nil {
		if old.alive() && old.Name == want.Name && old.NetNS == want.NetNS {
			return old.Device, nil
		}
		s.drop(sl, old)
	}
	dev, err := newDevice(ns, want, &s.buffers, s.cfg.Logger.With("tag", want.Tag, "interface", want.Name))
	if err != nil {
		return Device{}, err
	}
	s.mu.Lock()
	sl.dev = dev
	s.memory.add(1)
	s.idleLocked()
	s.mu.Unlock()
	s.running.Go(func() { s.watch(req.Tag, dev) })
	return want, nil
}

// watch forgets a device that ends by itself.
func (s *server) watch(tag string, dev *device) {
	<-dev.gone
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[tag]; sl != nil && sl.dev == dev {
		sl.dev = nil
		s.memory.add(-1)
		s.litterLocked()
		s.forgetLocked(tag, sl)
		s.idleLocked()
		s.cfg.Logger.Info("interface of a WireGuard device was deleted by somebody else", "tag", tag, "interface", dev.Name)
	}
}

// remove deletes the device or wire with this tag, if there is one.
func (s *server) remove(tag string) *Left {
	sl := s.take(tag)
	defer s.release(tag, sl)
	s.mu.Lock()
	dev := sl.dev
	s.mu.Unlock()
	if dev != nil {
		s.drop(sl, dev)
	}
	return s.dropWire(sl)
}

// drop deletes the slot's device. The caller has the slot's turn.
func (s *server) drop(sl *slot, dev *device) {
	s.mu.Lock()
	sl.dev = nil
	s.mu.Unlock()
	dev.close()
	s.mu.Lock()
	s.memory.add(-1)
	s.litterLocked()
	s.mu.Unlock()
}

// deleteAll deletes every device, eight at a time: the kernel takes 20 ms for
// one alone and 5 ms each for eight. It includes those being made now.
func (s *server) deleteAll() {
	s.mu.Lock()
	tags := slices.Collect(maps.Keys(s.slots))
	s.mu.Unlock()
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for _, tag := range tags {
		limit <- struct{}{}
		wg.Go(func() {
			s.remove(tag)
			<-limit
		})
	}
	wg.Wait()
}

// take waits for the turn at the tag's slot.
func (s *server) take(tag string) *slot {
	s.mu.Lock()
	sl := s.slots[tag]
	if sl == nil {
		sl = &slot{turn: make(chan struct{}, 1)}
		s.slots[tag] = sl
	}
	sl.users++
	s.mu.Unlock()
	sl.turn <- struct{}{}
	return sl
}

func (s *server) release(tag string, sl *slot) {
	<-sl.turn
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.users--
	s.forgetLocked(tag, sl)
	s.idleLocked()
}

// forgetLocked removes a slot that nobody needs.
func (s *server) forgetLocked(tag string, sl *slot) {
	if sl.dev == nil && sl.wire == nil && sl.users == 0 {
		delete(s.slots, tag)
	}
}

// What a device leaves on the heap, its sockets and pools, is free only after several
// collections. Left to itself the collector has each of them wait for the heap
// to double, and with it the next one's share: while wires come and go the heap would
// grow without end. So some are made shortly after a device has ended, and not while
// one is being made; but not before there is as much to find as half of what is in use,
// which costs a second of processor time with a thousand devices, and the packet buffers
// that these keep in pools. The rest is left to the collection that Go makes every two
// minutes.
const (
	collectAfter = time.Second
	collectTimes = 3
)

// litterLocked notes that a device has ended.
func (s *server) litterLocked() {
	if s.ended++; s.ended < s.memory.devices/2 {
		return
	}
	s.ended = 0
	if s.collections == 0 {
		s.garbage.Reset(collectAfter)
	}
	s.collections = collectTimes
}

// collect collects garbage, and once more later if that is due. The last time it gives
// back to the system what is free.
func (s *server) collect() {
	s.mu.Lock()
	s.collections--
	more := s.collections > 0
	if more {
		s.garbage.Reset(collectAfter)
	}
	s.mu.Unlock()
	if more {
		runtime.GC()
	} else {
		debug.FreeOSMemory()
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// idleLocked starts or stops the idle timer after a change.
func (s *server) idleLocked() {
	if s.forwarders == 0 && len(s.slots) == 0 {
		s.idle.Reset(s.cfg.Idle)
	} else {
		s.idle.Stop()
	}
}

// stopIfIdle decides, when the timer has fired, whether the holder ends. From
// then on it makes no device, so a forwarder that asks now starts a new one.
func (s *server) stopIfIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forwarders == 0 && len(s.slots) == 0 {
		s.stopping = true
	}
	return s.stopping
}
