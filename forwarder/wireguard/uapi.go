// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/wireguard/holder"
)

// control configures WireGuard devices by name: wgctrl for those of the kernel, or uapi.
type control interface {
	Device(ctx context.Context, name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, set wgtypes.Config) error
}

// uapi configures the devices of a holder by WireGuard's protocol for userspace devices
// (wireguard.com/xplatform). So does wgctrl, which looks through the sockets of all
// devices of the machine for each call, waits for an answer without end, and loses the
// number of an error. Of what there is to set and read it knows what this package uses; a
// device's own public key is not among it.
type uapi struct{}

// uapiPatience is how long a device may take for an answer: the kernel needs
// milliseconds to close a socket when a port changes.
const uapiPatience = 10 * time.Second

// Device reads the device with this name. It fails with fs.ErrNotExist if there is none,
// and with ECONNREFUSED if it was one of a holder that has been killed.
func (uapi) Device(ctx context.Context, name string) (*wgtypes.Device, error) {
	var d *wgtypes.Device
	err := exchange(ctx, name, "get=1\n\n", func(answer *bufio.Scanner) (err error) {
		d, err = parseDevice(answer)
		return err
	})
	return d, err
}

// ConfigureDevice sets what is set in set. It fails as Device does, and with the
// unix.Errno that the device answers. What has begun is not broken off: it is one of several
// changes, as a rule.
func (uapi) ConfigureDevice(name string, set wgtypes.Config) error {
	return exchange(context.Background(), name, "set=1\n"+formatConfig(set)+"\n", func(answer *bufio.Scanner) error {
		_, err := parseDevice(answer) // which has no device in it
		return err
	})
}

// exchange sends a request and has read take the answer.
func exchange(ctx context.Context, name, request string, read func(*bufio.Scanner) error) error {
	ctx, cancel := context.WithTimeout(ctx, uapiPatience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", holder.ConfigPath(name))
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	return read(bufio.NewScanner(c))
}

// formatConfig is set as the protocol has it.
func formatConfig(set wgtypes.Config) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if set.PrivateKey != nil {
		line("private_key", hex.EncodeToString(set.PrivateKey[:]))
	}
	if set.ListenPort != nil {
		line("listen_port", *set.ListenPort)
	}
	if set.ReplacePeers {
		line("replace_peers", true)
	}
	for _, p := range set.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.Remove {
			line("remove", true)
		}
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, n := range p.AllowedIPs {
			line("allowed_ip", n.String())
		}
	}
	return b.String()
}

// parseDevice reads an answer up to its end, which is an empty line after the error
// number. Keys that it does not know it passes over.
func parseDevice(answer *bufio.Scanner) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.Userspace}
	result := -1 // not known yet
	for answer.Scan() && answer.Text() != "" {
		key, value, _ := strings.Cut(answer.Text(), "=")
		var err error
		switch {
		case key == "errno":
			result, err = strconv.Atoi(value)
		case key == "public_key":
			d.Peers = append(d.Peers, wgtypes.Peer{})
			err = parseKey(&d.Peers[len(d.Peers)-1].PublicKey, value)
		case len(d.Peers) > 0:
			err = parsePeer(&d.Peers[len(d.Peers)-1], key, value)
		case key == "private_key":
			err = parseKey(&d.PrivateKey, value)
		case key == "listen_port":
			d.ListenPort, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, fmt.Errorf("answer with a bad %s: %w", key, err)
		}
	}
	switch err := answer.Err(); {
	case err != nil:
		return nil, err
	case result == -1:
		return nil, io.ErrUnexpectedEOF
	case result != 0:
		return nil, unix.Errno(max(result, -result)) // wireguard-go's are negative
	}
	return d, nil
}

// parsePeer sets what a line says of a peer.
func parsePeer(p *wgtypes.Peer, key, value string) (err error) {
	switch key {
	case "endpoint":
		var at netip.AddrPort
		at, err = netip.ParseAddrPort(value)
		p.Endpoint = udpAddr(at)
	case "last_handshake_time_sec":
		var seconds int64
		if seconds, err = strconv.ParseInt(value, 10, 64); seconds != 0 {
			p.LastHandshakeTime = time.Unix(seconds, 0)
		}
	case "last_handshake_time_nsec": // after the seconds
		var nanoseconds int64
		if nanoseconds, err = strconv.ParseInt(value, 10, 64); nanoseconds != 0 {
			p.LastHandshakeTime = time.Unix(p.LastHandshakeTime.Unix(), nanoseconds)
		}
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
	case "persistent_keepalive_interval":
		var seconds int
		seconds, err = strconv.Atoi(value)
		p.PersistentKeepaliveInterval = time.Duration(seconds) * time.Second
	case "allowed_ip":
		var n *net.IPNet
		if _, n, err = net.ParseCIDR(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, *n)
		}
	}
	return err
}

func parseKey(k *wgtypes.Key, value string) error {
	if len(value) != 2*len(k) {
		return fmt.Errorf("a key of %d digits", len(value))
	}
	_, err := hex.Decode(k[:], []byte(value))
	return err
}
