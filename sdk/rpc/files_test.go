// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/nserr"
)

// swapper claims the file that a request names as its id, and answers with one of
// its own.
func swapper(t *testing.T, own *os.File) *service {
	return &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		f, err := ReceiveFile(ctx, r.GetConnection().GetId())
		if err != nil {
			return nil, err
		}
		defer f.Close()
		content, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) // works for O_PATH too
		if err != nil {
			return nil, err
		}
		if err := SendFiles(ctx, own); err != nil {
			return nil, err
		}
		return &networkservice.Connection{Id: inodeURL(t, own), NetworkService: string(content)}, nil
	}}
}

func swap(ctx context.Context, cc grpc.ClientConnInterface, f *os.File, id string) (content string, reply *os.File, err error) {
	var p peer.Peer
	conn, err := networkservice.NewNetworkServiceClient(cc).Request(WithFiles(ctx, f),
		&networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: id}}, grpc.Peer(&p))
	if err != nil {
		return "", nil, err
	}
	reply, err = ReceiveReplyFile(ctx, &p, conn.GetId())
	return conn.GetNetworkService(), reply, err
}

// Files pass in both directions, whatever is around them, and nothing stays open.
func TestFilesPass(t *testing.T) {
	own := tempFile(t, "answer")
	local := NewLocal(LocalOptions{})
	defer local.Close()
	swapper(t, own).register(local)
	conns := map[string]func(*testing.T) grpc.ClientConnInterface{
		"local": func(*testing.T) grpc.ClientConnInterface { return local.Dial(LocalCaller{}) },
	}
	for name, credentials := range transports(t) {
		conns[name] = func(t *testing.T) grpc.ClientConnInterface {
			client, server := credentials()
			target := serve(t, unixURL(t), ServerOptions{Credentials: server}, swapper(t, own).register)
			return dial(t, target, DialOptions{Credentials: client})
		}
	}
	for name, connect := range conns {
		t.Run(name, func(t *testing.T) {
			cc := connect(t)
			path := tempFile(t, "question").Name()
			f, err := os.OpenFile(path, unix.O_PATH, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range 3 { // the same file again, over the same connection
				content, reply, err := swap(t.Context(), cc, f, inodeURL(t, f))
				if err != nil || content != "question" {
					t.Fatalf("content %q, error %v", content, err)
				}
				if inodeURL(t, reply) != inodeURL(t, own) {
					t.Error("another file came back")
				}
				reply.Close()
			}
			if n := openFiles(t, path, 2); n != 2 { // tempFile's and ours
				t.Errorf("%d descriptors of the file are open", n)
			}
			if n := openFiles(t, own.Name(), 1); n != 1 {
				t.Errorf("%d descriptors of the answer are open", n)
			}
		})
	}
}

// Many at once: more than the 64 of one recvmsg, and more than fit into a small write.
func TestManyFiles(t *testing.T) {
	for name, credentials := range transports(t) {
		t.Run(name, func(t *testing.T) {
			impl := &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
				for url := range r.GetConnection().GetLabels() {
					f, err := ReceiveFile(ctx, url)
					if err != nil {
						return nil, err
					}
					if inodeURL(t, f) != url {
						t.Errorf("got %s for %s", inodeURL(t, f), url)
					}
					f.Close()
				}
				return r.GetConnection(), nil
			}}
			client, server := credentials()
			target := serve(t, unixURL(t), ServerOptions{Credentials: server}, impl.register)
			cc := dial(t, target, DialOptions{Credentials: client})

			var files []*os.File
			labels := map[string]string{}
			for range maxFiles {
				f := tempFile(t, "")
				files = append(files, f)
				labels[inodeURL(t, f)] = ""
			}
			r := &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Labels: labels}}
			if _, err := networkservice.NewNetworkServiceClient(cc).Request(WithFiles(t.Context(), files...), r); err != nil {
				t.Error(err)
			}
			tooMany := append(files, files[0])
			if _, err := networkservice.NewNetworkServiceClient(cc).Request(WithFiles(t.Context(), tooMany...), r); !errors.Is(err, nserr.Busy) {
				t.Errorf("%d files: %v", len(tooMany), err)
			}
		})
	}
}

func TestFilesThatCannotPass(t *testing.T) {
	client, server := Plaintext()
	f := tempFile(t, "")
	closed := tempFile(t, "")
	closedURL := inodeURL(t, closed)
	closed.Close()
	impl := &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		_, err := ReceiveFile(ctx, r.GetConnection().GetId())
		return r.GetConnection(), err
	}}
	urls := listenURLs(t)
	overTCP := dial(t, serve(t, urls["tcp"], ServerOptions{Credentials: server}, impl.register), DialOptions{Credentials: client})
	overUnix := dial(t, serve(t, urls["unix"], ServerOptions{Credentials: server}, impl.register), DialOptions{Credentials: client})
	for _, test := range []struct {
		name string
		cc   grpc.ClientConnInterface
		file *os.File // nil: none is sent
		id   string
	}{
		{"sent over TCP", overTCP, f, inodeURL(t, f)},
		{"expected over TCP", overTCP, nil, inodeURL(t, f)},
		{"not sent", overUnix, nil, inodeURL(t, f)},
		{"closed before", overUnix, closed, closedURL},
		{"not an inode", overUnix, f, "file:///proc/self/fd/0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.file != nil {
				ctx = WithFiles(ctx, test.file)
			}
			_, err := networkservice.NewNetworkServiceClient(test.cc).Request(ctx,
				&networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: test.id}})
			if !errors.Is(err, nserr.NoDescriptor) {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := SendFiles(t.Context(), f); !errors.Is(err, nserr.NoDescriptor) {
		t.Errorf("sent outside a call: %v", err)
	}
}

func fileConnOf(t *testing.T, u *net.UnixConn) *fileConn {
	t.Helper()
	c, err := newFileConn(u, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What we write grpcfd can read (§2.14): one descriptor in each message, and all bytes of a
// write that there is none left for come with the last.
func TestWriteFormat(t *testing.T) {
	a, b := socketPair(t)
	c := fileConnOf(t, a)
	defer c.Close()
	files := []*os.File{tempFile(t, "0"), tempFile(t, "1"), tempFile(t, "2")}
	if err := c.send(files); err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{"ab", "cdef", "gh"} { // the first is shorter than the queue
		if n, err := c.Write([]byte(data)); n != len(data) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	buf, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4*filesPerRead))
	for i, want := range []string{"a", "b", "cdef", "gh"} {
		n, oobn, flags, _, err := b.ReadMsgUnix(buf, oob)
		if err != nil || flags&unix.MSG_CTRUNC != 0 {
			t.Fatalf("flags %#x, %v", flags, err)
		}
		var got []string
		for _, fd := range parseRights(oob[:oobn]) {
			f := os.NewFile(uintptr(fd), "received")
			got = append(got, inodeURL(t, f))
			f.Close()
		}
		if string(buf[:n]) != want {
			t.Errorf("message %d is %q, want %q", i, buf[:n], want)
		}
		switch {
		case i == len(files) && len(got) == 0:
		case i < len(files) && len(got) == 1 && got[0] == inodeURL(t, files[i]):
		default:
			t.Errorf("message %d carries %d descriptors", i, len(got))
		}
	}
}

// A message with a descriptor may be longer than what the socket takes at once.
func TestLongWriteWithFile(t *testing.T) {
	a, b := socketPair(t)
	sender, receiver := fileConnOf(t, a), fileConnOf(t, b)
	defer sender.Close()
	defer receiver.Close()
	f := tempFile(t, "")
	if err := sender.send([]*os.File{f}); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	wrote := make(chan error, 1)
	go func() {
		n, err := sender.Write(want)
		if n != len(want) && err == nil {
			err = io.ErrShortWrite
		}
		wrote <- err
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(receiver, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes arrive, or %v", err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	i, _ := inodeOf(f)
	claimed, err := receiver.inbox.claim(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	claimed.Close()
}

// A sender may put several descriptors into one message, and data of any length with it.
func TestReadFormat(t *testing.T) {
	a, b := socketPair(t)
	c := fileConnOf(t, b)
	defer c.Close()
	var files []*os.File
	var fds []int
	for range filesPerRead {
		f := tempFile(t, "")
		files, fds = append(files, f), append(fds, int(f.Fd()))
	}
	if _, _, err := a.WriteMsgUnix([]byte("0123456789"), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	head := make([]byte, 4) // shorter than the message
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(c)
	if err != nil || string(head)+string(rest) != "0123456789" {
		t.Errorf("read %q and %q, %v", head, rest, err)
	}
	for _, f := range files {
		i, _ := inodeOf(f)
		got, err := c.inbox.claim(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(got.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v: a child process would inherit it", flags, err)
		}
		got.Close()
	}
}

// Closing a connection closes what was sent to it and what it has not sent.
func TestCloseClosesFiles(t *testing.T) {
	a, b := socketPair(t)
	sender, receiver := fileConnOf(t, a), fileConnOf(t, b)
	arrived, queued := tempFile(t, ""), tempFile(t, "")
	if err := sender.send([]*os.File{arrived}); err != nil {
		t.Fatal(err)
	}
	if _, err := sender.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := receiver.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := sender.send([]*os.File{queued}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{arrived.Name(): 2, queued.Name(): 2} {
		if n := openFiles(t, name, want); n != want {
			t.Errorf("%d descriptors, want %d", n, want)
		}
	}
	sender.Close()
	receiver.Close()
	receiver.Close()
	for _, name := range []string{arrived.Name(), queued.Name()} {
		if n := openFiles(t, name, 1); n != 1 {
			t.Errorf("%d descriptors after Close", n)
		}
	}
	if err := sender.send([]*os.File{queued}); !errors.Is(err, nserr.NoDescriptor) {
		t.Errorf("sent after Close: %v", err)
	}
	i, _ := inodeOf(queued)
	if _, err := receiver.inbox.claim(t.Context(), i); !errors.Is(err, nserr.NoDescriptor) {
		t.Errorf("claimed after Close: %v", err)
	}
	if err := receiver.inbox.sendTo([]*os.File{tempFile(t, "")}); err != nil {
		t.Fatal(err)
	}
	if n := len(receiver.inbox.files); n != 0 {
		t.Errorf("%d files after Close", n)
	}
}

// A handshake that fails must not leave anything either.
func TestFailedHandshakeClosesFiles(t *testing.T) {
	a, b := socketPair(t)
	_, server := transports(t)["tls"]()
	f := tempFile(t, "")
	if _, _, err := a.WriteMsgUnix([]byte("GET / HTTP/1.1\r\n\r\n"), unix.UnixRights(int(f.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.ServerHandshake(b); err == nil {
		t.Error("plain HTTP passed for TLS")
	}
	if n := openFiles(t, f.Name(), 1); n != 1 {
		t.Errorf("%d descriptors after the handshake", n)
	}
}

// A socket that is known by descriptor alone can be dialled (§2.14, registry).
func TestDialDescriptor(t *testing.T) {
	client, server := Plaintext()
	path := filepath.Join(t.TempDir(), "s.sock")
	serve(t, "unix://"+path, ServerOptions{Credentials: server}, (&service{request: func(_ context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		return r.GetConnection(), nil
	}}).register)
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cc := dial(t, fmt.Sprintf("unix:///proc/self/fd/%d", f.Fd()), DialOptions{Credentials: client})
	if _, err := request(t.Context(), cc); err != nil {
		t.Error(err)
	}
}

func TestInboxWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(inbox)
		defer b.close()
		f := tempFile(t, "")
		i, _ := inodeOf(f)
		time.AfterFunc(fileWait-1, func() { _ = b.sendTo([]*os.File{f}) })
		got, err := b.claim(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		got.Close()

		start := time.Now()
		if _, err := b.claim(t.Context(), i); !errors.Is(err, nserr.NoDescriptor) || time.Since(start) != fileWait {
			t.Errorf("claimed twice: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start = time.Now()
		if _, err := b.claim(ctx, i); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Millisecond {
			t.Errorf("claimed beyond the deadline: %v after %v", err, time.Since(start))
		}
		time.AfterFunc(time.Millisecond, b.close)
		start = time.Now()
		if _, err := b.claim(t.Context(), i); !errors.Is(err, nserr.NoDescriptor) || time.Since(start) != time.Millisecond {
			t.Errorf("claimed from a closed box: %v after %v", err, time.Since(start))
		}
	})
}

func TestInboxExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(inbox)
		defer b.close()
		early, late, claimed := tempFile(t, ""), tempFile(t, ""), tempFile(t, "")
		open := func() (n int) { return openNow(t, early.Name()) + openNow(t, late.Name()) - 2 }
		put := func(f *os.File) {
			if err := b.sendTo([]*os.File{f}); err != nil {
				t.Fatal(err)
			}
		}
		put(claimed)
		time.Sleep(time.Second)
		put(early)
		time.Sleep(time.Second)
		put(late)
		i, _ := inodeOf(claimed)
		got, err := b.claim(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		for _, step := range []struct {
			after time.Duration
			open  int
		}{{fileLife - time.Second - 1, 2}, {1, 1}, {time.Second - 1, 1}, {1, 0}} {
			time.Sleep(step.after)
			synctest.Wait()
			if n := open(); n != step.open {
				t.Errorf("%d are open, want %d", n, step.open)
			}
		}
		if _, err := got.Stat(); err != nil {
			t.Errorf("what was claimed expired: %v", err)
		}
		put(late) // the timer must run again after a pause
		time.Sleep(fileLife)
		synctest.Wait()
		if n := open(); n != 0 {
			t.Errorf("%d are open at the end", n)
		}
	})
}

func TestInboxIsBounded(t *testing.T) {
	b := new(inbox)
	defer b.close()
	first, second := tempFile(t, ""), tempFile(t, "")
	files := append([]*os.File{first}, slices.Repeat([]*os.File{second}, maxFiles)...)
	if err := b.sendTo(files); err != nil {
		t.Fatal(err)
	}
	if n := len(b.files); n != maxFiles {
		t.Errorf("%d files are kept", n)
	}
	if n := openFiles(t, first.Name(), 1); n != 1 {
		t.Errorf("the oldest has %d descriptors", n)
	}
}

// A caller whose descriptor was closed before its call had its turn has made no mistake,
// and may try again. One that has sent none has made one.
func TestDescriptorLostUnderLoad(t *testing.T) {
	for what, test := range map[string]struct {
		lose func(b *inbox, own inode, more []*os.File) error
		want *nserr.Reason
	}{
		"for want of room": {func(b *inbox, _ inode, more []*os.File) error { return b.sendTo(more) }, nserr.Busy},
		"for want of time": {func(*inbox, inode, []*os.File) error { time.Sleep(fileLife + 1); return nil }, nserr.Busy},
		"another's was closed": {func(b *inbox, own inode, more []*os.File) error {
			return errors.Join(unix.Close(b.take(own)), b.sendTo(append(more, more[0])))
		}, nserr.NoDescriptor},
		"it was claimed": {func(b *inbox, own inode, _ []*os.File) error { return unix.Close(b.take(own)) }, nserr.NoDescriptor},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, more := tempFile(t, ""), slices.Repeat([]*os.File{tempFile(t, "")}, maxFiles)
				own, _ := inodeOf(f)
				local := NewLocal(LocalOptions{})
				defer local.Close()
				(&service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
					if err := test.lose(servedLink(ctx).inbox, own, more); err != nil {
						return nil, err
					}
					_, err := ReceiveFile(ctx, r.GetConnection().GetId())
					return &networkservice.Connection{}, err
				}}).register(local)
				_, _, err := swap(t.Context(), local.Dial(LocalCaller{}), f, own.String())
				if e := nserr.From(err); e.Reason != test.want || e.Reason == nserr.Busy && e.Retry == 0 {
					t.Errorf("error %v, to be tried again after %v; want %v", err, e.Retry, test.want)
				}
			})
		})
	}
}

func TestInodeURL(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	if got, want := inodeURL(t, ns), fmt.Sprintf("inode://%d/%d", st.Dev, st.Ino); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzParseInodeURL(f *testing.F) {
	for _, s := range []string{"inode://4/4026531840", "inode://0/0", "inode://4", "inode://-1/2", "inode://4/18446744073709551616", "file:///x", "inode:///", "inode://4/5/6", "inode://+4/5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		i, err := parseInodeURL(s)
		if err != nil {
			if !errors.Is(err, nserr.NoDescriptor) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if again, err := parseInodeURL(i.String()); err != nil || again != i {
			t.Errorf("%q is %v, then %v, %v", s, i, again, err)
		}
	})
}
