// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/osthread"
	"github.com/openvwire/nsm/sdk/nserr"
)

// otherNetNS makes a network namespace that nobody is in.
func otherNetNS(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	var err error
	osthread.Run(func() bool {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		return false
	})
	if errors.Is(err, unix.EPERM) {
		t.Skip("making a network namespace needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMayHandOver(t *testing.T) {
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	other := otherNetNS(t)
	pid := int32(os.Getpid())
	for name, tt := range map[string]struct {
		who  Sender
		ns   *os.File
		want error
	}{
		"own":                           {Sender{pid, 65534}, own, nil},
		"somebody else's":               {Sender{pid, 65534}, other, nserr.NotAllowed},
		"somebody else's, by root":      {Sender{pid, 0}, other, nil},
		"by a process that is not seen": {Sender{0, 65534}, other, nil},
		"by a process that is gone":     {Sender{1 << 30, 65534}, own, nserr.NotAllowed},
		"not over a Unix socket":        {Sender{}, other, nil},
	} {
		if err := tt.who.MayHandOver(tt.ns); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// A namespace that a user has made in a user namespace of his own is his, whoever
// is in it now.
func TestMayHandOverNamespaceOfOwnMaking(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and unshare(1) to make a namespace as another user")
	}
	c := exec.Command(unshare, "-Un", "sh", "-c", "echo inside; exec sleep 60")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "inside\n" {
		t.Skip("unprivileged user namespaces are not allowed here")
	}
	path := "/proc/" + strconv.Itoa(c.Process.Pid) + "/ns/net"
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	me := int32(os.Getpid())
	if err := (Sender{me, 65534}).MayHandOver(ns); err != nil {
		t.Errorf("its maker: %v", err)
	}
	if err := (Sender{me, 65533}).MayHandOver(ns); !errors.Is(err, nserr.NotAllowed) {
		t.Errorf("another user: %v, want NotAllowed", err)
	}
}

// The kernel says who sends, over TLS or not.
func TestSenderIsWhoConnected(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	_, server := Plaintext()
	_, info, err := server.ServerHandshake(accepted)
	if err != nil {
		t.Fatal(err)
	}
	want := Sender{int32(os.Getpid()), uint32(os.Getuid())}
	if got := senderOf(linkOf(info)); got != want {
		t.Errorf("sender is %v, want %v", got, want)
	}
}
