// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// protocolVersion says what a holder can do, to whoever looks. Nothing depends on it: a
// forwarder adopts every holder, since its wires must outlive an upgrade, and both live
// with peers of any other version (docs/adr/0007). That holds as long as
//
//   - fields and operations are only added, and keep name and meaning: whoever does not
//     know a field ignores it, and a holder that does not know an operation says
//     NSM-1004, which a forwarder takes for no more than that;
//   - [DeviceName] stays as it is, by which a forwarder finds a device's configuration
//     socket, and that speaks WireGuard's own protocol;
//   - socket and lock stay where they are.
//
// TestProtocolStays pins them down.
//
// History: 1, November 2026: ping, attach, create, delete, list. 2, November 2026: tunnel,
// wire, point, wires; delete is for these wires, too. 3, November 2026: profile.
const protocolVersion = 3

// maxMessage bounds one message in bytes: a list of 20,000 devices.
const maxMessage = 4 << 20

// One connection carries one request and its reply, that of profile in pieces. Only
// attach stays open after the reply, for as long as the forwarder lives: it keeps an
// empty holder from exiting, and its end tells the forwarder that the holder died.
const (
	opPing   = "ping"
	opAttach = "attach"
	opCreate = "create" // one descriptor travels beside it: the namespace
	opDelete = "delete"
	opList   = "list"

	opTunnel = "tunnel" // make the tunnel, if there is none
	opWire   = "wire"   // make a wire of the tunnel; the namespace travels beside it
	opPoint  = "point"  // lead a wire to its other end
	opWires  = "wires"  // list wires, or tell of the one with the tag; and of the tunnel

	opProfile = "profile" // record what the holder spends time or memory on
)

type request struct {
	Op   string `json:"op"`
	Tag  string `json:"tag,omitempty"`  // create, delete, wire, point, wires
	Name string `json:"name,omitempty"` // create, wire: interface name in the namespace
	MTU  int    `json:"mtu,omitempty"`  // create, wire: bytes

	Node     uint32 `json:"node,omitempty"`     // tunnel: own id
	Ethernet bool   `json:"ethernet,omitempty"` // wire
	Local    uint32 `json:"local,omitempty"`    // wire
	Remote   uint32 `json:"remote,omitempty"`   // point
	Peer     uint32 `json:"peer,omitempty"`     // point

	Profile string `json:"profile,omitempty"` // profile: kind, as of nsm.admin.v1
	Seconds int    `json:"seconds,omitempty"` // profile: likewise
}

type reply struct {
	Code    string   `json:"code,omitempty"`  // NSM-xxxx when the request failed
	Error   string   `json:"error,omitempty"` // what happened
	Fix     string   `json:"fix,omitempty"`
	Status  *Status  `json:"status,omitempty"` // ping, attach
	Devices []Device `json:"devices,omitempty"`

	Tunnel *Tunnel `json:"tunnel,omitempty"` // tunnel, wires: if there is one
	Wires  []Wire  `json:"wires,omitempty"`  // wires
	Left   *Left   `json:"left,omitempty"`   // delete, point: of a wire that led somewhere else before

	Data []byte `json:"data,omitempty"` // profile: a piece of it
	More bool   `json:"more,omitempty"` // profile: another reply follows with the next piece
}

// Status describes a running holder.
type Status struct {
	Version    int `json:"version"`    // of the protocol
	PID        int `json:"pid"`        // of the holder
	Devices    int `json:"devices"`    // it holds now
	Forwarders int `json:"forwarders"` // attached now
	Goroutines int `json:"goroutines"` // in all, to notice leaks

	Wires int `json:"wires,omitempty"` // of the tunnel
}

// Device is one userspace WireGuard device.
type Device struct {
	Tag   string `json:"tag"`   // chosen by the forwarder, unique in the holder
	Name  string `json:"name"`  // of the interface, in its namespace
	NetNS string `json:"netns"` // that namespace, "dev:ino" of its nsfs inode
	UAPI  string `json:"uapi"`  // name by which it is configured, see DeviceName
	MTU   int    `json:"mtu"`   // bytes, at creation
}

// err returns the error that the reply reports.
func (r *reply) err() error {
	if r.Code == "" {
		return nil
	}
	reason := nserr.ByCode(r.Code)
	if reason == nil {
		reason = nserr.Internal
	}
	return reason.Errorf("%s", r.Error).WithFix("%s", r.Fix)
}

func failure(err error) *reply {
	e := nserr.From(err)
	return &reply{Code: e.Reason.Code, Error: e.Msg, Fix: e.HowToFix()}
}

// writeMessage sends v as four bytes of length, big endian, and JSON. The
// descriptor of file, unless nil, travels with the first byte.
func writeMessage(c *net.UnixConn, v any, file *os.File) error {
	msg, err := message(v)
	if err != nil {
		return err
	}
	if file == nil {
		_, err = c.Write(msg)
		return err
	}
	// SyscallConn keeps the file open while it is sent.
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent int
	ctlErr := raw.Control(func(fd uintptr) {
		sent, _, err = c.WriteMsgUnix(msg, unix.UnixRights(int(fd)), nil)
	})
	if ctlErr != nil { // closed, because its owner gave it back
		return nserr.NoNetNS.Errorf("the workload's namespace: %w", ctlErr)
	}
	if err == nil && sent < len(msg) {
		_, err = c.Write(msg[sent:])
	}
	return err
}

// message returns what writeMessage sends.
func message(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > maxMessage {
		return nil, nserr.TooLarge.Errorf("message of %d bytes", len(body))
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), nil
}

// readMessage reads what writeMessage wrote.
func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return nserr.TooLarge.Errorf("message of %d bytes", n)
	}
	// Read as it arrives: a length without a body costs no memory.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(body, v)
}

// rightsReader reads a stream and collects the descriptors travelling beside
// it.
type rightsReader struct {
	conn  *net.UnixConn
	files []*os.File
}

func (r *rightsReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*4)) // a few more than anyone sends
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, oob)
	r.collect(oob[:oobn])
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// collect keeps every descriptor of the control messages, so that close
// leaves none behind.
func (r *rightsReader) collect(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
}

// namespace takes the one descriptor that came beside a request.
func (r *rightsReader) namespace() (*os.File, error) {
	if len(r.files) != 1 {
		return nil, nserr.NoDescriptor.Errorf("%d descriptors beside the request, 1 expected", len(r.files))
	}
	ns := r.files[0]
	r.files = nil
	return ns, nil
}

// close closes every descriptor received.
func (r *rightsReader) close() {
	for _, f := range r.files {
		_ = f.Close()
	}
}

// samePeerUser fails unless the process at the other end has our user id.
func samePeerUser(c *net.UnixConn) error {
	cred, err := peerOf(c)
	if err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if uid := os.Geteuid(); int(cred.Uid) != uid {
		return nserr.NotAllowed.Errorf("process %d of user %d; only user %d may use this holder", cred.Pid, cred.Uid, uid).
			WithFix("run the forwarder and its WireGuard holder as the same user")
	}
	return nil
}

// peerOf returns which process, of which user, is at the other end.
func peerOf(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(ctlErr, err)
}

// hungUp reports whether the process at the other end waits for no answer any more.
func hungUp(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	_ = raw.Control(func(fd uintptr) {
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(events, 0)
		gone = err == nil && n == 1
	})
	return gone
}
