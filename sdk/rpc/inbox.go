// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// inbox holds the descriptors that arrived over one connection and were not
// claimed yet. A descriptor leaves it exactly once: claimed, or closed after
// fileLife, for want of room, or with the connection.
//
// The same file may be in it several times, once for each request that sent it.
type inbox struct {
	quota   *quota        // nil: none
	uid     uint32        // who sends
	refusal refusal       // of what is not fit; nothing comes where ends share a process
	done    chan struct{} // closed by close, once; nil where ends share a process

	mu      sync.Mutex
	shut    bool // not open yet
	closed  bool
	files   []arrival     // oldest first, at most maxFiles
	spilled []spill       // closed before somebody had claimed them; oldest first, at most maxSpills
	changed chan struct{} // closed at the next arrival, and by close; nil unless somebody waits for that
	expiry  *time.Timer   // runs expire when the oldest file is due; nil before the first arrival
}

// spill is a descriptor that was closed before anybody had claimed it.
type spill struct {
	inode inode
	at    time.Time
	why   error
}

type arrival struct {
	inode inode
	fd    int
	due   time.Time
}

// setShut makes b close whatever comes, or no longer.
func (b *inbox) setShut(shut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = shut
}

// none is no descriptor.
const none = -1

// receive takes ownership of fd, which another process has sent.
func (b *inbox) receive(fd int) {
	i, err := inodeAt(fd)
	if err != nil || !closesAtOnce(fd, i) {
		b.refuse(fd, i)
		return
	}
	b.put(fd, i)
}

// put takes ownership of fd, which closes at once. Descriptors that cannot be kept are closed.
func (b *inbox) put(fd int, i inode) {
	drop := none
	b.mu.Lock()
	switch room := !b.closed && !b.shut && len(b.files) < maxFiles && b.quota.add(b.uid, 0, 1); {
	case b.closed, b.shut:
		drop = fd
	case !room && len(b.files) == 0:
		drop = fd
		b.spillLocked(i, errSpilled)
	default:
		if !room {
			drop = b.files[0].fd
			b.spillLocked(b.files[0].inode, errSpilled)
			b.files = slices.Delete(b.files, 0, 1)
		}
		b.files = append(b.files, arrival{i, fd, time.Now().Add(fileLife)})
		b.scheduleLocked()
		b.tellLocked()
	}
	b.mu.Unlock()
	if drop != none {
		_ = unix.Close(drop)
	}
}

// refusal has room for the threads that descriptors of others may hold, of the thousands
// that a Go program can have.
type refusal chan struct{}

func newRefusal() refusal { return make(refusal, 8) }

// refuse closes a descriptor that nobody has reason to send. That takes as long as whoever sent
// it wants: a TCP socket can linger (socket(7), SO_LINGER), a file can be of a file system of
// their own. Where too many take their time, their connections are not read any further.
func (b *inbox) refuse(fd int, i inode) {
	b.mu.Lock()
	b.spillLocked(i, errUnfit)
	b.mu.Unlock()
	select {
	case b.refusal <- struct{}{}:
		go func() {
			defer func() { <-b.refusal }()
			_ = unix.Close(fd)
		}()
	case <-b.done:
		go unix.Close(fd)
	}
}

// tellLocked has those who wait look again.
func (b *inbox) tellLocked() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *inbox) spillLocked(i inode, why error) {
	if len(b.spilled) == maxSpills {
		b.spilled = slices.Delete(b.spilled, 0, 1)
	}
	b.spilled = append(b.spilled, spill{i, time.Now(), why})
}

// late is the error of a claim that has waited in vain: of a descriptor that has come and was
// closed it says why.
func (b *inbox) late(i inode) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	why := errLate
	for _, s := range b.spilled {
		if s.inode == i && time.Since(s.at) < spillLife {
			why = s.why
		}
	}
	return nserr.NoDescriptor.Errorf("%v: %w within %v", i, why, fileWait)
}

var (
	errLate    = errors.New("it did not arrive")
	errSpilled = errors.New("it came and was closed before its request had its turn, and did not arrive again")
	errUnfit   = errors.New("it came, is no namespace and not opened with O_PATH, and was closed; no other arrived")
)

// claim moves the file with inode i out of the box, waiting up to fileWait for it.
func (b *inbox) claim(ctx context.Context, i inode) (*os.File, error) {
	var timeout *time.Timer
	for {
		fd, changed := b.takeOrWait(i)
		if fd != none {
			return os.NewFile(uintptr(fd), "received"), nil
		}
		if changed == nil {
			return nil, nserr.NoDescriptor.Errorf("%v: the connection is closed", i)
		}
		if timeout == nil {
			timeout = time.NewTimer(fileWait)
			defer timeout.Stop()
		}
		select {
		case <-changed:
		case <-timeout.C:
			return nil, b.late(i)
		case <-ctx.Done():
			return nil, nserr.NoDescriptor.Errorf("%v did not arrive: %w", i, ctx.Err())
		}
	}
}

// take returns the oldest descriptor with inode i, none if there is none.
func (b *inbox) take(i inode) (fd int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takeLocked(i)
}

func (b *inbox) takeLocked(i inode) (fd int) {
	at := slices.IndexFunc(b.files, func(a arrival) bool { return a.inode == i })
	if at < 0 {
		return none
	}
	fd = b.files[at].fd
	b.files = slices.Delete(b.files, at, at+1)
	b.quota.add(b.uid, 0, -1)
	return fd
}

// takeOrWait is take, or else returns a channel that is closed when looking again makes
// sense, nil when it never will.
func (b *inbox) takeOrWait(i inode) (fd int, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if fd = b.takeLocked(i); fd != none || b.closed {
		return fd, nil
	}
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return none, b.changed
}

// expire closes the files that are due.
func (b *inbox) expire() {
	b.mu.Lock()
	now := time.Now()
	n := 0
	for n < len(b.files) && !b.files[n].due.After(now) {
		n++
	}
	for _, a := range b.files[:n] {
		b.spillLocked(a.inode, errSpilled)
	}
	due := slices.Clone(b.files[:n])
	b.files = slices.Delete(b.files, 0, n)
	b.quota.add(b.uid, 0, -n)
	b.scheduleLocked()
	b.mu.Unlock()
	for _, a := range due {
		_ = unix.Close(a.fd)
	}
}

// scheduleLocked sets the timer to the oldest file. A timer that fires early, since
// its file was claimed, finds nothing due and is set again.
func (b *inbox) scheduleLocked() {
	if len(b.files) == 0 {
		return
	}
	wait := time.Until(b.files[0].due)
	if b.expiry == nil {
		b.expiry = time.AfterFunc(wait, b.expire)
	} else {
		b.expiry.Reset(wait)
	}
}

// close closes all files and refuses more. It may be called twice.
func (b *inbox) close() {
	b.mu.Lock()
	files := b.files
	b.files = nil
	b.quota.add(b.uid, 0, -len(files))
	if !b.closed {
		b.closed = true
		if b.done != nil {
			close(b.done)
		}
		b.tellLocked()
	}
	if b.expiry != nil {
		b.expiry.Stop()
	}
	b.mu.Unlock()
	for _, a := range files {
		_ = unix.Close(a.fd)
	}
}

// sendTo puts duplicates of files into the box, for ends that share a process.
func (b *inbox) sendTo(files []*os.File) error {
	dups, err := dupAll(files)
	if err != nil {
		return err
	}
	for n, fd := range dups {
		i, err := inodeAt(fd)
		if err != nil {
			closeAll(dups[n:])
			return err
		}
		b.put(fd, i)
	}
	return nil
}
