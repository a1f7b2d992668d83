// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openvwire/nsm/internal/profile"
	"github.com/openvwire/nsm/sdk/nserr"
)

// attached returns a client and the holder that it has started, whose socket is in dir.
func attached(t *testing.T, dir string) *Client {
	t.Helper()
	c := newTestClient(t, underlay(t), filepath.Join(dir, "wg.sock"))
	if err := c.attach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	return c
}

// A profile is one of the holder's process, and whoever visits gets it.
func TestProfile(t *testing.T) {
	c := attached(t, t.TempDir())
	data, err := Visit(c.cfg.Socket).Profile(t.Context(), "goroutine", 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil || !bytes.Contains(text, []byte("holder.Main")) || bytes.Contains(text, []byte("testing.tRunner")) {
		t.Errorf("%v, or of another process: %q", err, text)
	}
	// One that takes longer than a request does, before it is asked whether it lives.
	if data, err := c.Profile(t.Context(), "cpu", 2); err != nil || !bytes.HasPrefix(data, []byte("\x1f\x8b")) {
		t.Errorf("cpu: %.20q, %v", data, err)
	}
	for kind, seconds := range map[string]int{"cmdline": 0, "cpu": 301, "heap": -1} {
		if _, err := c.Profile(t.Context(), kind, seconds); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("%s for %d s: %v", kind, seconds, err)
		}
		// Nor does the holder, whoever asks it.
		if _, err := c.call(t.Context(), &request{Op: opProfile, Profile: kind, Seconds: seconds}, nil); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("the holder, %s for %d s: %v", kind, seconds, err)
		}
	}
}

// The log has what is recorded, and of what is refused nothing.
func TestProfileInLog(t *testing.T) {
	for kind, want := range map[string]int{"goroutine": 1, "cmdline": 0} {
		log := &book{}
		s := &server{cfg: Config{Logger: log.logger()}}
		ours, theirs := pair(t)
		var serving sync.WaitGroup
		serving.Go(func() { s.profile(theirs, &request{Op: opProfile, Profile: kind}) })
		if _, err := readReply(t.Context(), ours, ours, &request{Op: opProfile}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		_ = ours.Close()
		serving.Wait()
		s.running.Wait()
		if n := log.count("profile=" + kind); n != want || log.count("profile") > 2*want {
			t.Errorf("%s: said %d times, want %d: %s", kind, n, want, &log.buf)
		}
	}
}

// untilBusy asks the holder for short profiles until it is, or is no more, busy with
// another one, but not for ever, and not when that one has ended.
func untilBusy(t *testing.T, c *Client, want bool, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for busy := !want; busy != want; {
		select {
		case err := <-ended:
			t.Fatalf("the other profile has ended: %v", err)
		default:
		}
		_, err := c.Profile(ctx, "goroutine", 0)
		if busy = errors.Is(err, nserr.Busy); err != nil && !busy || ctx.Err() != nil {
			t.Fatalf("the holder, asked until busy is %v: %v", want, err)
		}
	}
}

// record has the holder record a profile for as long as may be, and returns when it does.
func record(ctx context.Context, t *testing.T, c *Client) (ended <-chan error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		for {
			_, err := Visit(c.cfg.Socket).Profile(ctx, "trace", 300)
			if !errors.Is(err, nserr.Busy) { // a short one was first
				done <- err
				return
			}
		}
	}()
	untilBusy(t, c, true, done)
	return done
}

// A holder records one profile at a time, and none for somebody who has gone. It does
// everything else meanwhile.
func TestProfileOneAtATime(t *testing.T) {
	c := attached(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := record(ctx, t, c)
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("a profile that was given up")
	}
	untilBusy(t, c, false, nil)
}

// A holder that ends does not wait for a profile.
func TestProfileEndsWithHolder(t *testing.T) {
	c := attached(t, t.TempDir())
	ended := record(t.Context(), t, c)
	stopHolder(t, c) // within 10 s
	if err := <-ended; !errors.Is(err, nserr.PeerDown) {
		t.Errorf("%v", err)
	}
}

// Another user is refused: by the file's mode; if that were not so, by the holder, and by
// himself, who would believe a holder of another user anything.
func TestProfileOfOtherUser(t *testing.T) {
	dir, err := os.MkdirTemp("", "nsm") // unlike t.TempDir one that others may enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := attached(t, dir)
	ask := func() string {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "stranger", c.cfg.Socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := ask(); !strings.Contains(out, "visitor: "+nserr.NotAllowed.Code) || !strings.Contains(out, "permission denied") {
		t.Errorf("with the socket as it is: %s", out)
	}
	if err := os.Chmod(c.cfg.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	out := ask()
	for _, want := range []string{"visitor: " + nserr.NotAllowed.Code, "answer: " + nserr.NotAllowed.Code, "of user 65534; only user 0 may use this holder"} {
		if !strings.Contains(out, want) {
			t.Errorf("with a socket for everybody: no %q in %s", want, out)
		}
	}
}

// stranger asks for a profile and prints what comes of it, once as a client does and once
// without looking whom it asks.
func stranger(socket string) {
	_, err := Visit(socket).Profile(context.Background(), "goroutine", 0)
	fmt.Println("visitor:", err)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		fmt.Println("answer:", err)
		return
	}
	defer conn.Close()
	var answer reply
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_ = writeMessage(conn, &request{Op: opProfile, Profile: "goroutine"}, nil) // it may have been refused before
	if err = readMessage(conn, &answer); err == nil {
		err = answer.err()
	}
	fmt.Println("answer:", err)
}

// What is larger than a message comes whole.
func TestPieces(t *testing.T) {
	for _, size := range []int{0, 1, profilePiece, profilePiece + 1, 5*profilePiece/2 - 7} {
		a, b := pair(t)
		data := bytes.Repeat([]byte("nsm"), size/3+1)[:size]
		go sendPieces(a, data)
		got, err := readReply(t.Context(), b, b, &request{Op: opProfile})
		if err != nil || !bytes.Equal(got.Data, data) {
			t.Errorf("of %d bytes %d came, %v", size, len(got.Data), err)
		}
	}
	// Half of it is none.
	a, b := pair(t)
	if err := writeMessage(a, &reply{Data: []byte("half"), More: true}, nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if got, err := readReply(t.Context(), b, b, &request{Op: opProfile}); err == nil {
		t.Errorf("half an answer: %+v", got)
	}
}

// part is what a holder says after it has waited.
type part struct {
	after time.Duration
	data  []byte
}

// telling returns, in a bubble of synthetic time, a client and its connection to a holder
// that says so much. The ping that the client sends meanwhile finds nobody, which is not
// silence.
func telling(t *testing.T, parts ...part) (c *Client, conn net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	var told sync.WaitGroup
	told.Go(func() {
		for _, p := range parts {
			time.Sleep(p.after)
			_, _ = theirs.Write(p.data) // fails if nobody reads any more
		}
	})
	t.Cleanup(func() {
		_, _ = ours.Close(), theirs.Close()
		told.Wait()
	})
	return Visit(filepath.Join(t.TempDir(), "none")), ours
}

func encoded(t *testing.T, v *reply) []byte {
	t.Helper()
	b, err := message(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A recording is awaited for as long as it was asked for, which is longer than any other
// answer may take, and each further piece as an answer of its own.
func TestProfileTakesLong(t *testing.T) {
	for seconds, pause := range map[int]time.Duration{
		30:  30 * time.Second,
		300: 300*time.Second + callTimeout/2,
		0:   profile.UsualSeconds*time.Second + callTimeout/2,
	} {
		synctest.Test(t, func(t *testing.T) {
			c, conn := telling(t,
				part{pause, encoded(t, &reply{Data: []byte("one "), More: true})},
				part{callTimeout - time.Second, encoded(t, &reply{Data: []byte("two")})})
			got, err := c.answer(t.Context(), conn, &request{Op: opProfile, Profile: "cpu", Seconds: seconds})
			if err != nil || string(got.Data) != "one two" {
				t.Errorf("%d s: %q, %v", seconds, got.Data, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // but not for ever
		c, conn := telling(t, part{31*time.Second + callTimeout, encoded(t, &reply{})})
		if _, err := c.answer(t.Context(), conn, &request{Op: opProfile, Profile: "cpu", Seconds: 30}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("of 30 s after 46: %v", err)
		}
	})
}

// Who has begun to answer may take longer to end than to begin, but not for a ping.
func TestAnswerThatHalts(t *testing.T) {
	for op, want := range map[string]error{opPing: os.ErrDeadlineExceeded, opAttach: os.ErrDeadlineExceeded, opList: nil} {
		synctest.Test(t, func(t *testing.T) {
			whole := encoded(t, &reply{Status: &Status{}})
			c, conn := telling(t, part{patience / 2, whole[:1]}, part{pingLimit, whole[1:]})
			if _, err := c.answer(t.Context(), conn, &request{Op: op}); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", op, err, want)
			}
		})
	}
}

// What a holder may send is bounded, and in pieces it sends profiles alone. That it sends
// nonsense does not mean that none runs: another one is not started.
func TestPiecesRefused(t *testing.T) {
	for _, tt := range []struct {
		name, op string
		piece    reply
		want     *nserr.Reason
	}{
		{"without end", opProfile, reply{Data: make([]byte, 5*maxMessage/8), More: true}, nserr.TooLarge},
		{"of nothing", opProfile, reply{More: true}, nserr.BadAnswer},
		{"of a list", opList, reply{Data: []byte("x"), More: true}, nserr.BadAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			go func() {
				for writeMessage(a, &tt.piece, nil) == nil && ctx.Err() == nil {
				}
			}()
			_, err := Visit("none").exchange(ctx, b, &request{Op: tt.op}, nil)
			if got := nserr.From(err); got.Reason != tt.want {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

// A holder of before there were profiles says that it does not know the operation.
func TestProfileOfOldHolder(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "wg.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		var r request
		_ = readMessage(c, &r)
		_ = writeMessage(c, failure(nserr.BadRequest.Errorf("operation %q", r.Op)), nil)
	}()
	if _, err := Visit(socket).Profile(t.Context(), "heap", 0); !errors.Is(err, nserr.Unsupported) || !strings.Contains(err.Error(), "earlier version") {
		t.Errorf("%v", err)
	}
}
