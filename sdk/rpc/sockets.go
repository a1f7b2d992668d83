// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Sockets are the Unix sockets that a process knows by descriptor only: other
// processes sent them with an address of the form inode://dev/ino. Through them
// a peer is reached without a file system in common (§3.6).
type Sockets struct {
	mu    sync.Mutex
	byURL map[string]*socket // guarded by mu
}

type socket struct {
	file *os.File // an O_PATH descriptor of the socket's inode
	refs int      // guarded by Sockets.mu
}

// NewSockets returns an empty set.
func NewSockets() *Sockets { return &Sockets{byURL: make(map[string]*socket)} }

// Hold makes the socket f reachable as url until release is called. It takes f
// over. The same socket may be held many times.
func (s *Sockets) Hold(url string, f *os.File) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byURL[url]
	if e == nil {
		e = &socket{file: f}
		s.byURL[url] = e
	} else {
		_ = f.Close() // the same inode is open already
	}
	e.refs++
	return sync.OnceFunc(func() { s.release(url, e) })
}

// HoldAgain is one more Hold of a socket that is held already; ok is false when
// it is not, or url does not name a socket in this way.
func (s *Sockets) HoldAgain(url string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byURL[url]
	if e == nil {
		return nil, false
	}
	e.refs++
	return sync.OnceFunc(func() { s.release(url, e) }), true
}

func (s *Sockets) release(url string, e *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs--; e.refs == 0 {
		delete(s.byURL, url)
		_ = e.file.Close()
	}
}

// File returns a descriptor of the socket held as url, the caller's to close.
func (s *Sockets) File(url string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byURL[url]
	if e == nil {
		return nil, nserr.PeerDown.Errorf("the socket %s is no longer known", url)
	}
	dups, err := dupAll([]*os.File{e.file})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dups[0]), e.file.Name()), nil
}

// Len returns the number of sockets held.
func (s *Sockets) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byURL)
}

// Dial is rpc.Dial that knows the addresses inode://dev/ino of sockets held.
// The socket is looked up with each attempt to connect: it may come later than
// the call, and go.
func (s *Sockets) Dial(rawURL string, o DialOptions) (*grpc.ClientConn, error) {
	if _, err := parseInodeURL(rawURL); err != nil {
		return Dial(rawURL, o)
	}
	o.Options = append(o.Options[:len(o.Options):len(o.Options)], grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return s.connect(ctx, rawURL)
	}))
	return dialAs("unix:///"+rawURL, rawURL, o) // the path is never used
}

// connect opens a connection to a socket held as url.
func (s *Sockets) connect(ctx context.Context, url string) (c net.Conn, err error) {
	f, err := s.File(url)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = control(f, func(fd int) (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
		return err
	})
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return nil, fmt.Errorf("dial %s: %w", url, op.Err) // the number says nothing to anybody
	}
	return c, err
}

// Refused reports whether a connection to url is refused: nobody listens there. One
// that is only not answered is not; whoever listens may be busy.
func (s *Sockets) Refused(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var c net.Conn
	_, err := parseInodeURL(url)
	if err == nil {
		c, err = s.connect(ctx, url)
	} else if a, bad := parseAddress(url); bad == nil {
		c, err = dialer.DialContext(ctx, a.network, a.name)
	}
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}
