// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Caller is what the kernel says about the process at the other end of a Unix
// socket, at the moment when it connected.
type Caller struct {
	PID      int32
	UID, GID uint32 // in the user namespace of this process; 65534 for a user that it has not

	// Exe is the absolute path of the program the process ran. It is "" when
	// that cannot be told for sure: the program was replaced, or is another file
	// than the one that this process sees at the path.
	Exe string
}

// CallerFrom returns the caller of an RPC over a socket with [Attested]
// credentials.
func CallerFrom(ctx context.Context) (Caller, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.Caller, nil
		}
	}
	return Caller{}, nserr.NoIdentity.Errorf("the call did not come over a local Unix socket")
}

// Administrator returns the caller of an RPC over such a socket if it is root or the user
// of this process, who can read its memory and its keys anyway. It fails with
// nserr.NotAllowed for everybody else; what says what they may not do.
func Administrator(ctx context.Context, what string) (Caller, error) {
	caller, err := CallerFrom(ctx)
	if err != nil {
		return Caller{}, err
	}
	if own := os.Geteuid(); caller.UID != 0 && int(caller.UID) != own {
		return Caller{}, nserr.NotAllowed.Errorf("user %d may not %s", caller.UID, what).
			WithFix("run this as root, or as the user of the daemon, %d", own)
	}
	return caller, nil
}

// Attested returns server credentials for Unix sockets. There is nothing to
// encrypt; what they add is the Caller.
func Attested() credentials.TransportCredentials { return attested{} }

type attested struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	Caller
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "peercred" }

func (attested) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("not a Unix socket")
	}
	caller, err := attest(socket)
	if err != nil {
		return nil, nil, err
	}
	return conn, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, caller}, nil
}

func (attested) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("for servers only")
}

func (attested) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}
func (attested) Clone() credentials.TransportCredentials { return attested{} }
func (attested) OverrideServerName(string) error         { return nil }

// attest asks the kernel who connected (unix(7), SO_PEERCRED).
func attest(socket *net.UnixConn) (Caller, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var cred *unix.Ucred
	pidfd := -1
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if p, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			pidfd = p // since Linux 6.5
		}
	})
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if err = errors.Join(err, sockErr); err != nil {
		return Caller{}, err
	}
	return Caller{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid, Exe: program(cred.Pid, pidfd)}, nil
}

// program returns the path of a process's program. The path is how the process
// itself sees it, so that a user could show any path in a mount namespace of
// his own; hence the file there must be the very program for us as well. And
// the process must still be there afterwards, lest another got its number.
func program(pid int32, pidfd int) string {
	link := "/proc/" + strconv.Itoa(int(pid)) + "/exe"
	path, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	running, err := os.Stat(link)
	if err != nil {
		return ""
	}
	here, err := os.Stat(path)
	if err != nil || !os.SameFile(running, here) || exited(pidfd) {
		return ""
	}
	return path
}

// exited reports whether the process of a pidfd has ended; false if there is
// no pidfd to ask.
func exited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 // poll(2) ignores a negative descriptor
}
