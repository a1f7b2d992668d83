// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// fileConn is a Unix stream connection that carries descriptors next to its bytes.
// It sits below TLS, which does not notice.
//
// On the wire (protocol.md §2.14):
//
//	sendmsg  1 byte + SCM_RIGHTS with 1 descriptor       once per queued descriptor but the last,
//	sendmsg  the rest + SCM_RIGHTS with 1 descriptor     with the bytes of a write
//
// The kernel never merges data across a message with SCM_RIGHTS, so a reader
// whose every read is a recvmsg with ancillary room loses none. grpcfd v1.1.4, which is
// such a reader, sends one byte with the last one, too, and then writes the rest: that takes
// both sides a system call more.
//
// Descriptors are numbers in here. An os.File, which asks the kernel how its descriptor is
// open and has a finalizer, is made of those that somebody claims: most come with refreshes,
// for which they are closed unseen.
type fileConn struct {
	*net.UnixConn
	inbox *inbox
	leave func() // gives the place in the quota back

	ancillary [ancillaryRoom]byte // of the one reader, which is TLS or gRPC's loop

	writing sync.Mutex // serialises Write: the bytes of one must stay together

	mu     sync.Mutex
	queue  []int // duplicates that wait for the next Write, at most maxFiles
	closed bool  // queue stays empty

	sender Sender // at the other end; constant
}

// ancillaryRoom is CMSG_SPACE of filesPerRead descriptors: a header and 4 bytes each.
const ancillaryRoom = unix.SizeofCmsghdr + 4*filesPerRead

// newFileConn counts the connection in q, which may be nil, until Close.
func newFileConn(c *net.UnixConn, q *quota) (*fileConn, error) {
	who, leave, err := q.enter(c)
	if err != nil {
		return nil, err
	}
	box := &inbox{quota: q, uid: who.UID, done: make(chan struct{})}
	if q != nil {
		box.refusal = q.refusal
	} else {
		box.refusal = newRefusal()
	}
	return &fileConn{UnixConn: c, inbox: box, leave: leave, sender: who}, nil
}

// handshake runs f; descriptors that come meanwhile, before anybody knows from
// whom, are closed.
func (c *fileConn) handshake(f func() error) error {
	c.inbox.setShut(true)
	defer c.inbox.setShut(false)
	return f()
}

// send queues duplicates of files for the next Write. The caller keeps its files
// and makes sure that a Write follows: send before the message that names them.
func (c *fileConn) send(files []*os.File) error {
	dups, err := dupAll(files)
	if err != nil {
		return err
	}
	c.mu.Lock()
	switch {
	case c.closed:
		err = nserr.NoDescriptor.Errorf("cannot send descriptors: the connection is closed")
	case len(c.queue)+len(dups) > maxFiles:
		err = nserr.Busy.Errorf("more than %d descriptors wait to be sent", maxFiles)
	default:
		c.queue = append(c.queue, dups...)
	}
	c.mu.Unlock()
	if err != nil {
		closeAll(dups)
	}
	return err
}

// Write sends queued descriptors with the first bytes of b, then the rest of b.
// What b is too short for waits for the next Write.
func (c *fileConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	done := 0
	fds := c.dequeue(len(b))
	for i, fd := range fds {
		with := b[i : i+1]
		if i == len(fds)-1 {
			with = b[i:]
		}
		n, _, err := c.WriteMsgUnix(with, unix.UnixRights(fd), nil)
		_ = unix.Close(fd) // the peer's own is under way
		if err != nil {
			closeAll(fds[i+1:])
			return done, err
		}
		done += n
	}
	if done == len(b) {
		return done, nil
	}
	n, err := c.UnixConn.Write(b[done:])
	return done + n, err
}

func (c *fileConn) dequeue(most int) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.queue), most)
	fds := c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) == 0 {
		c.queue = nil
	}
	return fds
}

// Read reads bytes and files away what descriptors come with them.
func (c *fileConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // recvmsg would report the end of the stream
	}
	n, oobn, _, _, err := c.ReadMsgUnix(b, c.ancillary[:]) // sets MSG_CMSG_CLOEXEC
	if oobn > 0 {
		for _, fd := range parseRights(c.ancillary[:oobn]) {
			c.inbox.receive(fd)
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as Read has it, not wrapped
	}
	return max(n, 0), err // recvmsg's -1 is no number of bytes
}

// Close closes the connection and every descriptor that was not sent or claimed.
func (c *fileConn) Close() error {
	err := c.UnixConn.Close()
	c.mu.Lock()
	fds := c.queue
	c.queue, c.closed = nil, true
	c.mu.Unlock()
	closeAll(fds)
	c.inbox.close()
	c.leave()
	return err
}

// parseRights returns the descriptors of all SCM_RIGHTS messages in oob.
func parseRights(oob []byte) (all []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel wrote it; nothing to close can be told from garbage
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // another kind of message
		}
		all = append(all, fds...)
	}
	return all
}

// dupAll duplicates all files or none.
func dupAll(files []*os.File) ([]int, error) {
	dups := make([]int, 0, len(files))
	for _, f := range files {
		err := control(f, func(fd int) error {
			d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				dups = append(dups, d)
			}
			return err
		})
		if err != nil {
			closeAll(dups)
			return nil, nserr.NoDescriptor.Errorf("cannot duplicate %s: %w", f.Name(), err)
		}
	}
	return dups, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
