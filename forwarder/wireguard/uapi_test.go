// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// What is set by the protocol is what wgctrl reads, and so is what is read.
func TestUAPIAgreesWithWgctrl(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		if !userspace {
			t.Skip("the kernel's devices have no socket")
		}
		a, b := newRig(t, userspace)
		a.wire(t)
		b.wire(t)
		roundTrip(t, dial(t, a.work, echo(t, b.work, b.inner4)), "so that there is a session")
		var ours uapi
		theirs, err := wgctrl.New()
		must(t, err)
		defer theirs.Close()
		name := a.backend.(*Userspace).name(a.tag)
		agree := func() *wgtypes.Device {
			t.Helper()
			read := func(c control) *wgtypes.Device {
				d, err := c.Device(t.Context(), name)
				must(t, err)
				d.Name, d.PublicKey = "", wgtypes.Key{} // a socket does not say
				for i := range d.Peers {
					d.Peers[i].ProtocolVersion = 0
				}
				slices.SortFunc(d.Peers, func(a, b wgtypes.Peer) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) })
				return d
			}
			for range 100 { // packets are counted meanwhile
				before, want, after := read(ours), read(kernelControl{theirs}), read(ours)
				if !reflect.DeepEqual(before, after) {
					continue
				}
				// As text: an IPv4 address may have 4 bytes or 16.
				if got, want := fmt.Sprintf("%+v", after), fmt.Sprintf("%+v", want); got != want {
					t.Fatalf("read\n%s, by wgctrl\n%s", got, want)
				}
				return want
			}
			t.Fatal("a device changes all the time")
			return nil
		}
		if d := agree(); len(d.Peers) != 1 || d.Peers[0].LastHandshakeTime.IsZero() || d.Peers[0].ReceiveBytes == 0 {
			t.Errorf("the device is %+v", d)
		}
		keepalive, port := 7*time.Second, 51999
		k, one, two := key(newKey(t)), key(newKey(t)).PublicKey(), key(newKey(t)).PublicKey()
		must(t, ours.ConfigureDevice(name, wgtypes.Config{
			PrivateKey: &k, ListenPort: &port, ReplacePeers: true,
			Peers: []wgtypes.PeerConfig{
				{PublicKey: one, Endpoint: udpAddr(netip.MustParseAddrPort("[2001:db8::9]:9")), ReplaceAllowedIPs: true, AllowedIPs: anywhere},
				{PublicKey: two, PersistentKeepaliveInterval: &keepalive},
			},
		}))
		if d := agree(); d.PrivateKey != k || d.ListenPort != port || len(d.Peers) != 2 {
			t.Errorf("the device is %+v", d)
		}
		must(t, ours.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: one, Remove: true}}}))
		if d := agree(); len(d.Peers) != 1 || d.Peers[0].PublicKey != two || d.Peers[0].PersistentKeepaliveInterval != keepalive {
			t.Errorf("the device is %+v", d)
		}

		taken := 51820
		must(t, a.table.Self().Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: taken})
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		}))
		if err := ours.ConfigureDevice(name, wgtypes.Config{ListenPort: &taken}); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a port that is taken: %v", err)
		}
		if _, err := ours.Device(t.Context(), "nosuch"); !gone(err) {
			t.Errorf("a device that is not there: %v", err)
		}
	})
}

func parse(answer string) (*wgtypes.Device, error) {
	return parseDevice(bufio.NewScanner(strings.NewReader(answer)))
}

// An answer that makes no sense is an error that says why.
func TestUAPIAnswers(t *testing.T) {
	for _, c := range []struct{ answer, want string }{
		{"errno=0\n\n", ""},
		{"future=1\nerrno=0\n\nlisten_port=x\n", ""},
		{"", io.ErrUnexpectedEOF.Error()},
		{"listen_port=1\n", io.ErrUnexpectedEOF.Error()},
		{"errno=-98\n\n", unix.EADDRINUSE.Error()},
		{"errno=1\n\n", unix.EPERM.Error()},
		{"errno=x\n\n", "errno"},
		{"private_key=00\nerrno=0\n\n", "private_key: a key of 2 digits"},
		{"public_key=" + strings.Repeat("zz", 32) + "\nerrno=0\n\n", "public_key"},
		{"public_key=" + strings.Repeat("00", 32) + "\nendpoint=nowhere\nerrno=0\n\n", "endpoint"},
		{"public_key=" + strings.Repeat("00", 32) + "\nallowed_ip=all\nerrno=0\n\n", "allowed_ip"},
		{"listen_port=" + strings.Repeat("1", 1<<17), bufio.ErrTooLong.Error()},
	} {
		switch _, err := parse(c.answer); {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%.60q: %v, want %q", c.answer, err, c.want)
		}
	}
}
