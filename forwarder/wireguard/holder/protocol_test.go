// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestDeviceName(t *testing.T) {
	seen := map[string]bool{}
	for _, socket := range []string{"/run/a/wg.sock", "/run/b/wg.sock"} {
		for i := range 1000 {
			name := DeviceName(socket, "tag"+itoa(i))
			if len(name) > 15 || seen[name] {
				t.Fatalf("%q is too long or taken", name)
			}
			if !strings.HasPrefix(name, namePrefix(socket)) {
				t.Fatalf("%q lacks the holder's prefix %q", name, namePrefix(socket))
			}
			seen[name] = true
		}
	}
}

// pair returns two ends of a Unix socket connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestMessageWithDescriptor(t *testing.T) {
	a, b := pair(t)
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := writeMessage(a, &request{Op: opCreate, Tag: "w1"}, file); err != nil {
		t.Fatal(err)
	}
	in := &rightsReader{conn: b}
	var got request
	if err := readMessage(in, &got); err != nil {
		t.Fatal(err)
	}
	if got != (request{Op: opCreate, Tag: "w1"}) || len(in.files) != 1 {
		t.Fatalf("got %+v with %d descriptors", got, len(in.files))
	}
	want, _ := file.Stat()
	have, err := in.files[0].Stat()
	if err != nil || !os.SameFile(want, have) {
		t.Errorf("another file arrived: %v", err)
	}
	in.close()
}

func TestErrorsCross(t *testing.T) {
	sent := nserr.NameTaken.Errorf("interface %s exists", "nsm-1").WithFix("choose another")
	got := failure(sent).err()
	if !errors.Is(got, nserr.NameTaken) || nserr.From(got).HowToFix() != "choose another" {
		t.Errorf("%v arrived as %v", sent, got)
	}
	if err := (&reply{Code: "NSM-9999"}).err(); !errors.Is(err, nserr.Internal) {
		t.Errorf("unknown code: %v", err)
	}
}

func TestReadMessageRefuses(t *testing.T) {
	var v request
	long := binary.BigEndian.AppendUint32(nil, maxMessage+1)
	if err := readMessage(bytes.NewReader(long), &v); !errors.Is(err, nserr.TooLarge) {
		t.Errorf("long message: %v", err)
	}
	short := append(binary.BigEndian.AppendUint32(nil, 10), "{}"...)
	if err := readMessage(bytes.NewReader(short), &v); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut message: %v", err)
	}
}

// The server answers nonsense with an error and goes on.
func TestServerAnswersNonsense(t *testing.T) {
	table := underlay(t)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	if err := c.attach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.call(t.Context(), &request{Op: "dance"}, nil); !errors.Is(err, nserr.BadRequest) {
		t.Errorf("unknown operation: %v", err)
	}
	if _, err := c.call(t.Context(), &request{Op: opCreate, Tag: "w1", Name: "nsm-1", MTU: 1400}, nil); !errors.Is(err, nserr.NoDescriptor) {
		t.Errorf("create without a namespace: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := c.call(t.Context(), &request{Op: opCreate, Tag: "w1", Name: "nsm-1", MTU: 1400}, null); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("create in /dev/null: %v", err)
	}
	conn, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x00\x00\x00\x04nope")); err != nil {
		t.Fatal(err)
	}
	var answer reply
	if err := readMessage(conn, &answer); err != nil || !errors.Is(answer.err(), nserr.BadRequest) {
		t.Errorf("garbage: %+v, %v", answer, err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the holder is gone: %v", err)
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, body := range []string{`{}`, `{"op":"create","tag":"w1","name":"nsm-1","mtu":1400}`, `{"op":1}`, `[`, ``} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var v request
		r := bytes.NewReader(data)
		if readMessage(r, &v) != nil {
			return
		}
		if used := len(data) - r.Len(); used != 4+int(binary.BigEndian.Uint32(data)) {
			t.Errorf("read %d bytes of a message of %d", used, 4+binary.BigEndian.Uint32(data))
		}
	})
}

// What forwarders and holders of all versions have in common (protocolVersion). If this
// test fails the code is wrong, not the test: a holder of before an upgrade has the wires.
func TestProtocolStays(t *testing.T) {
	device := Device{Tag: "t", Name: "n", NetNS: "1:2", UAPI: "u", MTU: 3}
	for want, v := range map[string]any{
		`{"op":"ping"}`:             request{Op: opPing},
		`{"op":"attach"}`:           request{Op: opAttach},
		`{"op":"list"}`:             request{Op: opList},
		`{"op":"delete","tag":"t"}`: request{Op: opDelete, Tag: "t"},
		`{"op":"create","tag":"t","name":"n","mtu":3}`:                               request{Op: opCreate, Tag: "t", Name: "n", MTU: 3},
		`{"devices":[{"tag":"t","name":"n","netns":"1:2","uapi":"u","mtu":3}]}`:      reply{Devices: []Device{device}},
		`{"status":{"version":1,"pid":2,"devices":3,"forwarders":4,"goroutines":5}}`: reply{Status: &Status{Version: 1, PID: 2, Devices: 3, Forwarders: 4, Goroutines: 5}},
		`{"op":"tunnel","node":4294967295}`:                                          request{Op: opTunnel, Node: 1<<32 - 1},
		`{"op":"wire","tag":"t","name":"n","mtu":3,"ethernet":true,"local":4}`:       request{Op: opWire, Tag: "t", Name: "n", MTU: 3, Ethernet: true, Local: 4},
		`{"op":"point","tag":"t","remote":5,"peer":6}`:                               request{Op: opPoint, Tag: "t", Remote: 5, Peer: 6},
		`{"op":"wires","tag":"t"}`:                                                   request{Op: opWires, Tag: "t"},
		`{"tunnel":{"node":1,"uapi":"u"},"wires":[{"tag":"t","name":"n","netns":"1:2","mtu":3,"ethernet":true,"local":4,"remote":5,"peer":6,"sent":7,"received":8,"last_received":9}]}`: reply{
			Tunnel: &Tunnel{Node: 1, UAPI: "u"},
			Wires:  []Wire{{Tag: "t", Name: "n", NetNS: "1:2", MTU: 3, Ethernet: true, Local: 4, Remote: 5, Peer: 6, Sent: 7, Received: 8, LastReceived: 9}},
		},
		`{"op":"profile","profile":"cpu","seconds":1}`:            request{Op: opProfile, Profile: "cpu", Seconds: 1},
		`{"data":"AQI=","more":true}`:                             reply{Data: []byte{1, 2}, More: true},
		`{"left":{"peer":1,"wires":0}}`:                           reply{Left: &Left{Peer: 1}},
		`{"code":"NSM-1004","error":"operation \"x\"","fix":"y"}`: reply{Code: "NSM-1004", Error: `operation "x"`, Fix: "y"},
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	if name := DeviceName("/var/lib/nsm/wireguard.sock", "nsm:forwarder-a:1234:left"); name != "nsmb7lmw22e62e5" {
		t.Errorf("device name %s", name)
	}

	a, b := pair(t)
	if err := writeMessage(a, map[string]any{"later": []int{1}, "status": map[string]any{"version": 7, "pid": 5, "later": "x"}}, nil); err != nil {
		t.Fatal(err)
	}
	var answer reply
	if err := readMessage(b, &answer); err != nil || answer.Status == nil || answer.Status.PID != 5 {
		t.Errorf("an answer with more in it: %+v, %v", answer, err)
	}
	if err := (&reply{Code: "NSM-9999", Error: "of a later version"}).err(); !errors.Is(err, nserr.Internal) {
		t.Errorf("a reason that is not known: %v", err)
	}
}
