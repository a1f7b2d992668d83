// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bufio"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
)

// answer serves WireGuard's configuration protocol (wireguard.com/xplatform) on
// one connection until it ends, and closes it.
//
// It is wireguard-go's IpcHandle, except that the first configuration switches
// the device on, for ever. Before it there is no UDP socket: one with any port,
// opened only to be replaced when the port is set, would cost a millisecond for
// its buffers and now and then twelve until the kernel has closed it.
func (d *device) answer(c net.Conn) {
	defer c.Close()
	rw := bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
	for {
		op, err := rw.ReadString('\n')
		if err != nil {
			return
		}
		switch op {
		case "set=1\n":
			if err = d.wg.IpcSetOperation(rw.Reader); err == nil {
				err = d.wg.Up()
			}
		case "get=1\n":
			if _, err := rw.ReadString('\n'); err != nil {
				return
			}
			err = d.wg.IpcGetOperation(rw.Writer)
		default:
			return
		}
		if _, err := fmt.Fprintf(rw, "errno=%d\n\n", errno(err)); err != nil || rw.Flush() != nil {
			return
		}
	}
}

// errno is the number by which the protocol reports err.
func errno(err error) int64 {
	status := (*wg.IPCError)(nil)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.ErrorCode()
	case errors.Is(err, unix.EADDRINUSE): // by Up
		return ipc.IpcErrorPortInUse
	default:
		return ipc.IpcErrorIO
	}
}
