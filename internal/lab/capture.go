// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Capture reads along on a link (packet(7)).
type Capture struct {
	file   *os.File
	marker []byte
	done   chan struct{}
	seen   Captured // guarded by done
}

// Captured is what a capture has seen.
type Captured struct {
	Packets int         // of any kind
	Bytes   int         // of them, link headers included
	Marked  int         // packets in which the marker stands in the clear
	UDP     map[int]int // packets by UDP destination port
	Lost    int         // packets that came too fast
}

// captureBuffer is what a socket may hold, in bytes: a burst at the speed of
// memory.
const captureBuffer = 64 << 20

// Capture starts reading what goes over a link of the namespace, in both
// directions, and looks for marker in it.
func (ns *NetNS) Capture(link, marker string) (*Capture, error) {
	c := &Capture{marker: []byte(marker), done: make(chan struct{}), seen: Captured{UDP: make(map[int]int)}}
	err := ns.Do(func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNet(unix.ETH_P_ALL), Ifindex: dev.Index}); err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("packet socket on %s: %w", link, err)
		}
		c.file = os.NewFile(uintptr(fd), "packets of "+link)
		return nil
	})
	if err != nil {
		return nil, err
	}
	go c.read()
	return c, nil
}

func hostToNet(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (c *Capture) read() {
	defer close(c.done)
	packet := make([]byte, 128<<10) // segments travel unsplit, 64 KiB and more
	for {
		n, err := c.file.Read(packet)
		if err != nil {
			return
		}
		c.count(packet[:n])
	}
}

func (c *Capture) count(packet []byte) {
	c.seen.Packets++
	c.seen.Bytes += len(packet)
	if bytes.Contains(packet, c.marker) {
		c.seen.Marked++
	}
	if port, ok := udpPort(packet); ok {
		c.seen.UDP[port]++
	}
}

// Stop ends the capture and returns what it has seen.
func (c *Capture) Stop() (Captured, error) {
	_ = c.file.SetReadDeadline(aPast)
	<-c.done
	raw, err := c.file.SyscallConn()
	if err != nil {
		return c.seen, err
	}
	packet := make([]byte, 128<<10)
	controlErr := raw.Control(func(fd uintptr) {
		for { // what is queued still
			n, _, rerr := unix.Recvfrom(int(fd), packet, unix.MSG_DONTWAIT)
			if rerr != nil {
				break
			}
			c.count(packet[:n])
		}
		stats, serr := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if serr != nil {
			err = serr
			return
		}
		c.seen.Lost = int(stats.Drops)
	})
	return c.seen, errors.Join(controlErr, err, c.file.Close())
}

// udpPort returns the destination port of an Ethernet frame with UDP over IPv4
// or, without extension headers, IPv6.
func udpPort(frame []byte) (int, bool) {
	if len(frame) < 14 {
		return 0, false
	}
	ip := frame[14:]
	header := 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 || ip[9] != unix.IPPROTO_UDP {
			return 0, false
		}
		header = int(ip[0]&0x0f) * 4
	case unix.ETH_P_IPV6:
		if len(ip) < 40 || ip[6] != unix.IPPROTO_UDP {
			return 0, false
		}
		header = 40
	default:
		return 0, false
	}
	if len(ip) < header+8 {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(ip[header+2:])), true
}
