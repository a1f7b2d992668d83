// SPDX-License-Identifier: Apache-2.0

// Package memecho is package echo in memory: for tests in a synctest bubble, where
// there are no sockets.
//
//	air := &memecho.Air{Trip: time.Millisecond}
//	air.SetCarries(func(p memecho.Path) bool { return p.To != blackHole })
//	s, err := air.Open(netns, from, to)
package memecho

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Path is from where to where a socket asks.
type Path struct {
	NetNS    *os.File
	From, To netip.Addr
}

// Air is what lies between all sockets and their far ends. It carries everything
// until it is told otherwise.
type Air struct {
	Trip time.Duration // there and back

	mu      sync.Mutex
	carries func(Path) bool // guarded by mu; nil = yes
	refuses error           // of Open; guarded by mu
	sent    int             // guarded by mu
	open    int             // guarded by mu
}

// SetCarries has f decide about each request, when it is sent, whether an answer
// comes. It must not block.
func (a *Air) SetCarries(f func(Path) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.carries = f
}

// SetRefuses has Open fail with err, unless that is nil.
func (a *Air) SetRefuses(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuses = err
}

// Sent returns how many requests were sent.
func (a *Air) Sent() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sent
}

// Sockets returns how many sockets are open.
func (a *Air) Sockets() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open
}

// Socket is one socket. It is for one goroutine at a time.
type Socket struct {
	air     *Air
	path    Path
	answers []answer // on their way, in order
	closed  bool
}

type answer struct {
	seq uint16
	at  time.Time
}

var errClosed = errors.New("socket is closed")

// Open opens a socket.
func (a *Air) Open(netns *os.File, from, to netip.Addr) (*Socket, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuses != nil {
		return nil, a.refuses
	}
	a.open++
	return &Socket{air: a, path: Path{netns, from, to}}, nil
}

// Send asks once.
func (s *Socket) Send(seq uint16) error {
	if s.closed {
		return errClosed
	}
	s.air.mu.Lock()
	s.air.sent++
	carries := s.air.carries
	s.air.mu.Unlock()
	if carries == nil || carries(s.path) {
		s.answers = append(s.answers, answer{seq, time.Now().Add(s.air.Trip)})
	}
	return nil
}

// Receive returns the sequence number of an answer that has come, if there is one.
func (s *Socket) Receive() (seq uint16, ok bool) {
	if s.closed || len(s.answers) == 0 || s.answers[0].at.After(time.Now()) {
		return 0, false
	}
	seq = s.answers[0].seq
	s.answers = s.answers[1:]
	return seq, true
}

// Close closes the socket. It may be called more than once.
func (s *Socket) Close() error {
	if !s.closed {
		s.closed = true
		s.air.mu.Lock()
		s.air.open--
		s.air.mu.Unlock()
	}
	return nil
}
