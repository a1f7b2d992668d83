// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// A holder may run and not answer: somebody has stopped it (SIGSTOP), or the machine
// has. What it takes to make a device depends on the kernel, but a ping is answered
// without it. So whoever waits for longer than usual finds out by a ping, and until the
// next one is answered nobody waits for anything.
const (
	patience   = time.Second     // for an answer, before a ping
	pingLimit  = 2 * time.Second // for that of a ping or an attach
	pingsAgain = time.Second     // at least, between two pings of a holder that is silent
)

// silence is what is known of a holder that does not answer.
type silence struct {
	err    error
	pinged time.Time // when the last one was given up
	asking bool      // one is under way
}

// heard returns nil unless the holder is known to be silent. Now and then it asks; the
// others do not wait for that.
func (c *Client) heard(ctx context.Context) error {
	c.mu.Lock()
	s := c.silence
	if s == nil || s.asking || time.Since(s.pinged) < pingsAgain {
		defer c.mu.Unlock()
		return s.error()
	}
	s.asking = true
	c.mu.Unlock()
	err := c.ping(ctx)
	c.mu.Lock()
	s.asking = false
	still := c.silence != nil
	c.mu.Unlock()
	if still {
		return s.err
	}
	if err == nil && c.attached != nil {
		_ = c.attach(ctx, false) // if it was silent from the beginning; else the next one does it
	}
	return nil // also if it has died meanwhile: that is another matter
}

func (s *silence) error() error {
	if s == nil {
		return nil
	}
	return s.err
}

// silent is heard without asking.
func (c *Client) silent() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.silence.error()
}

// ping asks the holder whether it answers.
func (c *Client) ping(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		c.note(ctx, err)
		return err
	}
	defer conn.Close()
	_, err = c.exchange(ctx, conn, &request{Op: opPing}, nil)
	return err
}

// note learns from the outcome of a ping or an attach. It says once what is wrong.
func (c *Client) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // who asked did not wait long enough to tell
	}
	silent := errors.Is(err, nserr.TimedOut)
	c.mu.Lock()
	was := c.silence
	switch {
	case !silent:
		c.silence = nil
	case was == nil:
		c.silence = &silence{err: err, pinged: time.Now()}
	default:
		was.pinged = time.Now()
	}
	c.mu.Unlock()
	switch {
	case silent && was == nil:
		c.cfg.Logger.Error("WireGuard holder runs and does not answer, its wires carry nothing and none can be changed", "error", err)
	case err == nil && was != nil:
		c.cfg.Logger.Info("WireGuard holder answers again")
	}
}

// await waits for the beginning of an answer, and leaves the connection with a limit for
// the rest of it. It fails with nserr.TimedOut when the holder is silent.
func (c *Client) await(ctx context.Context, conn net.Conn, r *bufio.Reader, req *request) error {
	switch req.Op {
	case opPing, opAttach:
		limit(ctx, conn, pingLimit)
		_, err := r.Peek(1)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			err = silentError(conn)
		}
		c.note(ctx, err)
		return err
	}
	limit(ctx, conn, patience)
	_, err := r.Peek(1)
	if err == nil { // who has begun in time may take longer than that to end
		limit(ctx, conn, callTimeout-patience)
		return nil
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	if err := c.ping(ctx); errors.Is(err, nserr.TimedOut) {
		return err
	}
	limit(ctx, conn, callTimeout-patience+req.recording())
	return nil
}

func silentError(conn net.Conn) error {
	pid := 0
	if uc, ok := conn.(*net.UnixConn); ok {
		if cred, err := peerOf(uc); err == nil {
			pid = int(cred.Pid)
		}
	}
	return nserr.TimedOut.Errorf("WireGuard holder, process %d, runs and does not answer", pid).
		WithFix("if it was stopped have it go on: kill -CONT %d; else have it replaced, which makes its wires anew: kill -KILL %d", pid, pid)
}

// limit gives a connection a deadline, which is over if ctx is.
func limit(ctx context.Context, conn net.Conn, d time.Duration) {
	_ = conn.SetDeadline(time.Now().Add(d))
	if ctx.Err() != nil {
		_ = conn.SetDeadline(over)
	}
}

// over is a deadline in the past.
var over = time.Unix(1, 0)
