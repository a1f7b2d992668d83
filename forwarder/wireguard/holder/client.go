// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
)

// ClientConfig configures NewClient.
type ClientConfig struct {
	// Socket is the path on which the holder serves, at most 100 bytes, in a
	// directory that only this user can write to. It identifies the holder:
	// a restarted forwarder must use the same one.
	Socket string
	// Underlay is the namespace in which the holder runs and its UDP sockets
	// are.
	Underlay *netns.Handle
	// Command starts a holder: program and arguments. Nil means this program
	// with the arguments "wireguard-holder", "--socket", Socket.
	Command []string
	// OnRestart, unless nil, is called after a holder that had devices has
	// died and a new one, without them, has taken its place. The forwarder
	// should reconcile all its wires. Calls do not overlap; Close waits for
	// the last one.
	OnRestart func(context.Context)
	Logger    *slog.Logger // nil = slog.Default()
}

// Client is the forwarder's side of a holder. It adopts the holder that runs,
// starts one when the first device is wanted, and replaces one that died. It
// is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	cancel context.CancelFunc
	done   chan struct{} // closed when supervise has returned
	turn   chan struct{} // capacity 1: held while attaching or starting

	attached chan *session // capacity 1: to supervise
	starter  starter       // guarded by turn

	mu      sync.Mutex
	session *session // nil when not attached
	used    bool     // the holder has, or had, devices of ours
	silence *silence // nil unless the holder runs and does not answer
}

// session is an attachment to a running holder: a connection that ends with
// one of the two processes.
type session struct {
	conn   *net.UnixConn
	status Status
}

// callTimeout bounds one request to a holder that answers, when the caller's context
// does not. Deleting a device takes 20 ms; the rest is for a machine under load.
const callTimeout = 15 * time.Second

// startTimeout bounds the start of a holder, or the wait for the end of one
// that is just exiting.
const startTimeout = 10 * time.Second

var retry = backoff.Policy{Min: 10 * time.Millisecond, Max: 2 * time.Second}

// NewClient returns a client that has adopted the running holder, of whatever version,
// if there is one; one that does not answer is adopted when it does. It starts none.
// Close must be called.
func NewClient(ctx context.Context, cfg ClientConfig) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if len(cfg.Socket) > 100 { // sockaddr_un has 108
		return nil, nserr.StateDir.Errorf("socket path %q is too long", cfg.Socket).
			WithFix("use a state directory with a shorter path")
	}
	run, cancel := context.WithCancel(context.Background())
	c := &Client{
		cfg:      cfg,
		cancel:   cancel,
		done:     make(chan struct{}),
		turn:     make(chan struct{}, 1),
		attached: make(chan *session, 1),
	}
	go func() {
		defer close(c.done)
		c.supervise(run)
	}()
	s, err := c.dialAttach(ctx)
	switch {
	case err == nil:
		cfg.Logger.Info("adopted WireGuard holder"+s.version(), "pid", s.status.PID, "count", s.status.Devices+s.status.Wires)
		c.adopt(s)
	case !notRunning(err) && c.silent() == nil:
		c.Close()
		return nil, err
	}
	return c, nil
}

// Visit returns a client for List, Delete and Profile alone: it is not attached, starts no
// holder, and need not be closed.
func Visit(socket string) *Client {
	return &Client{cfg: ClientConfig{Socket: socket, Logger: slog.Default()}}
}

// Close detaches from the holder, which goes on, and waits for the client's
// goroutine.
func (c *Client) Close() {
	c.cancel()
	<-c.done
	c.turn <- struct{}{}
	c.starter.reap()
	<-c.turn
}

// making calls do, which asks the holder to make something, and starts a holder first if
// none runs.
func (c *Client) making(ctx context.Context, req *request, file *os.File) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout+callTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		answer, err := c.tryMake(ctx, req, file)
		if !notRunning(err) && !errors.Is(err, nserr.Stopping) {
			return answer, err
		}
		// It died, or was about to exit: start another.
		if waitErr := retry.Wait(ctx, attempt); waitErr != nil {
			return nil, err
		}
	}
}

func (c *Client) tryMake(ctx context.Context, req *request, file *os.File) (*reply, error) {
	if err := c.attach(ctx, true); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.used = true
	c.mu.Unlock()
	if ctx.Err() != nil {
		return nil, nserr.TimedOut.Errorf("WireGuard holder: %w", context.Cause(ctx))
	}
	// Who gives up now must know whether there is a device: it takes a moment to see.
	return c.call(context.WithoutCancel(ctx), req, file)
}

// Create makes the device with this tag and the given interface name and MTU
// in namespace ns, and starts a holder first if none runs. A device that is
// there already is left as it is. It fails with nserr.NameTaken when the
// namespace has another interface of that name.
func (c *Client) Create(ctx context.Context, ns *netns.Handle, tag, name string, mtu int) (Device, error) {
	answer, err := c.making(ctx, &request{Op: opCreate, Tag: tag, Name: name, MTU: mtu}, ns.File())
	if err != nil {
		return Device{}, err
	}
	if len(answer.Devices) != 1 {
		return Device{}, nserr.BadAnswer.Errorf("WireGuard holder created %d devices", len(answer.Devices))
	}
	return answer.Devices[0], nil
}

// Delete deletes the device or wire with this tag. One that does not exist is no
// error, nor is a holder that does not run.
func (c *Client) Delete(ctx context.Context, tag string) error {
	_, err := c.Drop(ctx, tag)
	return err
}

// Drop is Delete, and returns where the wire led to, nil if nowhere.
func (c *Client) Drop(ctx context.Context, tag string) (*Left, error) {
	answer, err := c.call(ctx, &request{Op: opDelete, Tag: tag}, nil)
	if notRunning(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return answer.Left, nil
}

// List returns the holder's devices ordered by tag; none if it does not run.
func (c *Client) List(ctx context.Context) ([]Device, error) {
	answer, err := c.call(ctx, &request{Op: opList}, nil)
	if notRunning(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return answer.Devices, nil
}

// Status asks the running holder for its status. It fails with nserr.PeerDown
// when none runs.
func (c *Client) Status(ctx context.Context) (Status, error) {
	answer, err := c.call(ctx, &request{Op: opPing}, nil)
	if err != nil {
		return Status{}, err
	}
	if answer.Status == nil {
		return Status{}, nserr.BadAnswer.Errorf("WireGuard holder sent no status")
	}
	return *answer.Status, nil
}

// Running reports whether a holder runs. It fails when one does not answer.
func (c *Client) Running(ctx context.Context) (bool, error) {
	_, err := c.Status(ctx)
	if notRunning(err) {
		return false, nil
	}
	return err == nil, err
}

// attach makes sure that this client is attached to a running holder. With
// start, it starts one if there is none.
func (c *Client) attach(ctx context.Context, start bool) error {
	if err := c.heard(ctx); err != nil {
		return err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nserr.TimedOut.Errorf("WireGuard holder: %w", context.Cause(ctx))
	}
	c.mu.Lock()
	attached := c.session != nil
	c.mu.Unlock()
	if attached {
		return nil
	}
	if err := c.silent(); err != nil { // as whoever had the turn before has found out
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		s, err := c.dialAttach(ctx)
		if err == nil {
			c.adopt(s)
			return nil
		}
		if !start || !notRunning(err) {
			return err
		}
		// Several forwarders, or one whose holder is just exiting, may get
		// here at once: the lock lets one new holder live, the others' starts
		// report no failure, and everybody dials again.
		if attempt > 0 { // not after the start: a holder waits for nobody for long
			if err := retry.Wait(ctx, attempt); err != nil {
				return nserr.TimedOut.Errorf("start of a WireGuard holder: %w", err)
			}
		}
		if err := c.starter.start(ctx, &c.cfg); err != nil {
			return err
		}
	}
}

// adopt makes s the session and hands it to supervise.
func (c *Client) adopt(s *session) {
	c.mu.Lock()
	c.session = s
	c.used = c.used || s.status.Devices+s.status.Wires > 0
	c.mu.Unlock()
	c.attached <- s
}

// supervise waits for the end of each session. If the holder had devices they
// are gone: it starts another and calls OnRestart.
func (c *Client) supervise(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			c.detach()
			return
		case s := <-c.attached:
			s.wait(ctx)
			c.detach()
			if ctx.Err() != nil {
				return
			}
			c.turn <- struct{}{}
			c.starter.wait(s.status.PID)
			<-c.turn
		}
		c.mu.Lock()
		used := c.used
		c.mu.Unlock()
		if !used {
			continue
		}
		c.cfg.Logger.Warn("WireGuard holder died, starting another")
		if c.restart(ctx) && c.cfg.OnRestart != nil {
			c.cfg.OnRestart(ctx)
		}
	}
}

// restart tries until a holder runs; false means that ctx ended.
func (c *Client) restart(ctx context.Context) bool {
	for attempt := 0; ; attempt++ {
		err := c.attach(ctx, true)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		c.cfg.Logger.Error("cannot start a WireGuard holder", "error", err, "attempt", attempt+1)
		if retry.Wait(ctx, attempt) != nil {
			return false
		}
	}
}

// version says which version of the protocol the holder has, if it is not ours.
func (s *session) version() string {
	if s.status.Version == protocolVersion {
		return ""
	}
	return fmt.Sprintf(", version %d of its protocol (ours is %d)", s.status.Version, protocolVersion)
}

// wait blocks until the holder dies or ctx ends.
func (s *session) wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	var b [1]byte
	_, _ = s.conn.Read(b[:]) // the holder never writes
}

// detach gives up the session, if there is one, and what is known of that holder.
func (c *Client) detach() {
	c.mu.Lock()
	s := c.session
	c.session, c.silence = nil, nil
	c.mu.Unlock()
	if s != nil {
		_ = s.conn.Close()
	}
}

func (c *Client) dialAttach(ctx context.Context) (*session, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := c.exchange(ctx, conn, &request{Op: opAttach}, nil)
	if err == nil && answer.Status == nil {
		err = nserr.BadAnswer.Errorf("WireGuard holder at %s sent no status", c.cfg.Socket)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return &session{conn: conn, status: *answer.Status}, nil
}

// call sends one request and returns its reply.
func (c *Client) call(ctx context.Context, req *request, file *os.File) (*reply, error) {
	if err := c.heard(ctx); err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return c.exchange(ctx, conn, req, file)
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.cfg.Socket)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, nserr.PeerDown.Errorf("WireGuard holder: %w", err)
	case ctx.Err() != nil:
		return nil, nserr.TimedOut.Errorf("WireGuard holder: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrPermission):
		return nil, nserr.NotAllowed.Errorf("WireGuard holder: %w", err).
			WithFix("run this as the user of the holder, who is root where 'nsm up' or 'nsm forwarder' is")
	case errors.Is(err, unix.EAGAIN): // it has not accepted thousands of connections
		return nil, nserr.TimedOut.Errorf("WireGuard holder at %s runs and does not answer: %w", c.cfg.Socket, err).
			WithFix("have it go on, kill -CONT, or have it replaced, kill -KILL: the process 'nsm wireguard-holder'")
	case err != nil:
		return nil, nserr.StateDir.Errorf("WireGuard holder: %w", err)
	}
	uc := conn.(*net.UnixConn)
	if err := samePeerUser(uc); err != nil {
		_ = uc.Close()
		return nil, err
	}
	return uc, nil
}

func (c *Client) exchange(ctx context.Context, conn *net.UnixConn, req *request, file *os.File) (*reply, error) {
	limit(ctx, conn, callTimeout)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(over) })
	defer stop()
	var answer reply
	err := writeMessage(conn, req, file)
	if err == nil {
		answer, err = c.answer(ctx, conn, req)
	}
	switch {
	case err == nil:
		return &answer, answer.err()
	case errors.Is(err, nserr.NoNetNS):
		return nil, err
	case errors.Is(err, nserr.TooLarge), errors.Is(err, nserr.BadAnswer): // it lives
		return nil, err
	case errors.Is(err, nserr.TimedOut) && ctx.Err() == nil: // it is silent
		return nil, err
	case ctx.Err() != nil:
		return nil, nserr.TimedOut.Errorf("WireGuard holder, %s: %w", req.Op, context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nserr.TimedOut.Errorf("WireGuard holder, %s: %w", req.Op, err)
	default:
		return nil, nserr.PeerDown.Errorf("WireGuard holder, %s: %w", req.Op, err)
	}
}

// answer waits for the answer to a request and reads it.
func (c *Client) answer(ctx context.Context, conn net.Conn, req *request) (reply, error) {
	in := bufio.NewReader(conn)
	if err := c.await(ctx, conn, in, req); err != nil {
		return reply{}, err
	}
	return readReply(ctx, conn, in, req)
}

// notRunning reports whether err says that no holder serves the socket, or
// that it died while being asked: dial and exchange use this reason for that.
func notRunning(err error) bool { return errors.Is(err, nserr.PeerDown) }
