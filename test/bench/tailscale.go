// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/openvwire/nsm/internal/lab"
)

// tailscaleVersion is the last one that the Go of this module builds.
const tailscaleVersion = "v1.102.5"

// tailscaleNetwork is where its test control server begins to give addresses:
// the first node to register gets the first.
var tailscaleNetwork = netip.MustParseAddr("100.64.0.0")

// tailscaleControl is where Tailscale's test control server listens, whatever
// namespace it runs in.
const tailscaleControl = "127.0.0.1:9911"

// tailscale runs tailscaled at both nodes, in its normal mode, and Tailscale's
// own test control server at the first. Its device is moved to the workload as
// Nebula's is:
//
//	TS_DEBUG_MTU=MTU tailscaled --tun=NAME --state=mem: --no-logs-no-support …
//	tailscale up --login-server=… --accept-dns=false --netfilter-mode=off
//	ip link set NAME netns WORKLOAD
//
// It returns the processes of tailscaled once they have found each other.
func tailscale(ctx context.Context, b *bench, h byHand) (pids []int, err error) {
	if _, err := h.nodeFrom.NetNS.Start(ctx, "listening on", b.tool("testcontrol")); err != nil {
		return nil, err
	}
	control := netip.AddrPortFrom(h.nodeFrom.Addr, 9911).String()
	if _, err := h.nodeFrom.NetNS.Start(ctx, "ready", "/proc/self/exe", "forward", control, tailscaleControl); err != nil {
		return nil, err
	}
	nodes := [2]*lab.Node{h.nodeFrom, h.nodeTo}
	// cli runs a command of tailscale with the node's daemon.
	cli := func(n *lab.Node, args ...string) (string, error) {
		return n.NetNS.Run(ctx, append([]string{b.tool("tailscale"), "--socket=" + filepath.Join(n.Dir, h.name, "sock")}, args...)...)
	}
	for i, n := range nodes {
		dir := filepath.Join(n.Dir, h.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		// Without TS_LOGS_DIR it leaves an identity for its logs on the machine.
		p, err := n.NetNS.Start(ctx, "magicsock: disco key", "env", "TS_LOGS_DIR="+dir, fmt.Sprint("TS_DEBUG_MTU=", h.mtu),
			b.tool("tailscaled"), "--tun="+h.name, "--state=mem:", "--statedir="+dir, "--socket="+filepath.Join(dir, "sock"),
			fmt.Sprint("--port=", h.port()), "--no-logs-no-support")
		if err != nil {
			return nil, err
		}
		pids = append(pids, p.PID)
		if _, err := cli(n, "up", "--login-server=http://"+control, "--accept-dns=false", "--netfilter-mode=off"); err != nil {
			return nil, err
		}
		got, err := cli(n, "ip", "-4")
		if err != nil {
			return nil, err
		}
		if want := h.address(byte(i + 1)).String(); strings.TrimSpace(got) != want {
			return nil, fmt.Errorf("tailscaled has got the address %q, not %s", got, want)
		}
	}
	if _, err := cli(h.nodeFrom, "ping", "--until-direct", h.address(2).String()); err != nil {
		return nil, err
	}
	err = errors.Join(h.move(h.name, h.nodeFrom.NetNS, h.from), h.move(h.name, h.nodeTo.NetNS, h.to))
	if err != nil {
		return nil, err
	}
	return pids, h.up()
}

// forward is a child that listens on one TCP address and passes all on to
// another.
func forward(args []string) error {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		from, err := listener.Accept()
		if err != nil {
			return err
		}
		to, err := net.Dial("tcp", args[1])
		if err != nil {
			return err
		}
		for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
			go func() { // ends with the connection, or with the process
				_, _ = io.Copy(way[1], way[0])
				_, _ = way[0].Close(), way[1].Close()
			}()
		}
	}
}
