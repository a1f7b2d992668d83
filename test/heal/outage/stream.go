// SPDX-License-Identifier: Apache-2.0

package outage

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// redial is the time between attempts to connect again, and the limit of one.
const (
	redial      = 20 * time.Millisecond
	dialTimeout = 500 * time.Millisecond

	// giveUp is how long nothing may come back: a connection whose own address is gone
	// is not told so.
	giveUp = 10 * time.Second
)

// Streamer sends a message over one TCP connection at every interval until it is
// stopped. When the connection breaks it makes another.
type Streamer struct {
	*record
	ns      *lab.NetNS
	to      string
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Stream connects to what [Serve] serves at an address, from the namespace.
func Stream(ctx context.Context, ns *lab.NetNS, to netip.AddrPort) (*Streamer, error) {
	s := &Streamer{record: newRecord(), ns: ns, to: to.String()}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	c, err := s.dial(ctx, 10*time.Second)
	if err != nil {
		cancel()
		return nil, err
	}
	s.running.Go(func() { s.run(life, c) })
	return s, nil
}

func (s *Streamer) dial(ctx context.Context, limit time.Duration) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = s.ns.Do(func() error {
		c, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp4", s.to)
		return err
	})
	return c, err
}

// run has one connection after the other.
func (s *Streamer) run(ctx context.Context, c net.Conn) {
	for {
		err := s.use(ctx, c)
		if ctx.Err() != nil {
			return
		}
		s.reset(err)
		for c = nil; c == nil; {
			if c, err = s.dial(ctx, dialTimeout); err == nil {
				break
			}
			c = nil
			select {
			case <-ctx.Done():
				return
			case <-time.After(redial):
			}
		}
	}
}

// use sends and receives until the connection breaks or ctx ends.
func (s *Streamer) use(ctx context.Context, c net.Conn) error {
	broken := make(chan error, 1)
	go func() {
		b := make([]byte, 8)
		for {
			_ = c.SetReadDeadline(time.Now().Add(giveUp))
			if _, err := io.ReadFull(c, b); err != nil {
				broken <- err
				return
			}
			s.answered(binary.BigEndian.Uint64(b))
		}
	}()
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			// When nothing is acknowledged there is no room one day, and what does not
			// find any is lost. Other errors are the reader's as well.
			_ = c.SetWriteDeadline(time.Now().Add(Interval))
			if n, _ := c.Write(binary.BigEndian.AppendUint64(nil, s.next())); n != 0 && n != 8 {
				_ = c.Close()
			}
			continue
		case err := <-broken:
			_ = c.Close()
			return err
		case <-ctx.Done():
			s.settle()
			_ = c.Close()
			return <-broken
		}
	}
}

// Stop ends the stream and returns what it has seen.
func (s *Streamer) Stop() Result {
	s.cancel()
	s.running.Wait()
	return s.messages()
}
