// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Sender is the process at the other end of a Unix socket, as the kernel knows it
// (unix(7), SO_PEERCRED). The zero Sender is that of any other connection.
type Sender struct {
	PID int32 // 0: in a PID namespace that this process does not see
	UID uint32
}

// SenderFrom returns who sends the request being served.
func SenderFrom(ctx context.Context) Sender { return senderOf(servedLink(ctx)) }

// ReplySender returns who answered a call made with grpc.Peer(p).
func ReplySender(p *peer.Peer) Sender { return senderOf(linkOf(p.AuthInfo)) }

func senderOf(l *link) Sender {
	if l == nil {
		return Sender{}
	}
	return l.sender
}

// MayHandOver fails with nserr.NotAllowed unless the sender may have interfaces put
// in the network namespace f: its own one, or one that it made in a user namespace
// of its own. A descriptor alone proves nothing, since named namespaces can be
// opened by everybody. Root may hand over any. So may who cannot be seen: a process
// in a container has no other's namespace to open.
func (s Sender) MayHandOver(f *os.File) error {
	if s.UID == 0 || s.PID == 0 {
		return nil
	}
	return control(f, func(fd int) error {
		var sent, own unix.Stat_t
		if err := unix.Fstat(fd, &sent); err != nil {
			return nserr.NoNetNS.Errorf("fstat: %w", err)
		}
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", s.PID), &own) == nil && own.Dev == sent.Dev && own.Ino == sent.Ino {
			return nil
		}
		if uid, err := namespaceOwner(fd); err == nil && uid == s.UID {
			return nil
		}
		return nserr.NotAllowed.Errorf("process %d of user %d sent a network namespace that is not its own", s.PID, s.UID).
			WithFix("run the client or endpoint inside the namespace, or as root")
	})
}

// namespaceOwner returns the user who made the user namespace that a namespace
// belongs to (ioctl_ns(2)). fd may be open with O_PATH.
func namespaceOwner(fd int) (uid uint32, err error) {
	ns, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ns)
	user, err := unix.IoctlRetInt(ns, unix.NS_GET_USERNS)
	if err != nil {
		return 0, err
	}
	defer unix.Close(user)
	return unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID)
}
