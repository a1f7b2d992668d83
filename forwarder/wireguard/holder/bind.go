// SPDX-License-Identifier: Apache-2.0

package holder

import "golang.zx2c4.com/wireguard/conn"

// bind is wireguard-go's bind, which leaves it to the kernel from which address and
// through which interface a packet goes.
//
// wireguard-go can remember by which its peer has called. It must then watch routes, and
// does so for each device with a thread that waits, three descriptors and a netlink
// socket, which the kernel passes with every change of any interface of the machine. But
// it hardly ever knows where UDP arrives in segments (Linux 5.0 and later), which it
// splits without that. It watches only for its own bind.
type bind struct {
	conn.Bind
	lend func() // gives the device the buffers of the receivers, once
}

func newBind() *bind { return &bind{Bind: conn.NewStdNetBind()} }

// Open implements conn.Bind. What arrives says nothing of where it has arrived, whatever
// kernel and wireguard-go do.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, port, err := b.Bind.Open(port)
	for i, f := range receive {
		receive[i] = func(packets [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
			n, err := f(packets, sizes, from)
			for j, size := range sizes[:n] {
				if size > 0 {
					from[j].ClearSrc()
				}
			}
			return n, err
		}
	}
	if err == nil { // the receivers are next
		b.lend()
	}
	return receive, port, err
}
