// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// quota bounds what each user of the machine may hold of a part's descriptors by
// connecting to its Unix sockets, so that none takes them all. Root, which can do
// worse, is not bound.
type quota struct {
	mu    sync.Mutex
	users map[uint32]usage // of those who hold anything; guarded by mu

	refusal refusal // of all users' descriptors
}

type usage struct{ conns, files int }

func newQuota() *quota { return &quota{users: make(map[uint32]usage), refusal: newRefusal()} }

// add changes what the user holds, unless that became more than is allowed.
func (q *quota) add(uid uint32, conns, files int) (ok bool) {
	if q == nil || uid == 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.users[uid]
	u.conns += conns
	u.files += files
	if conns > 0 && u.conns > maxUserConns || files > 0 && u.files > maxUserFiles {
		return false
	}
	if u == (usage{}) {
		delete(q.users, uid)
	} else {
		q.users[uid] = u
	}
	return true
}

// enter counts a connection, with the user at its other end, until leave.
func (q *quota) enter(c *net.UnixConn) (who Sender, leave func(), err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Sender{}, nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err == nil {
		err = credErr
	}
	if err != nil {
		return Sender{}, nil, err
	}
	if !q.add(cred.Uid, 1, 0) {
		return Sender{}, nil, nserr.Busy.Errorf("user %d has %d connections already", cred.Uid, maxUserConns)
	}
	return Sender{PID: cred.Pid, UID: cred.Uid}, sync.OnceFunc(func() { q.add(cred.Uid, -1, 0) }), nil
}
