// SPDX-License-Identifier: Apache-2.0

package outage

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// Pinger sends a datagram at every interval until it is stopped.
type Pinger struct {
	*record
	socket    *net.UDPConn
	quit      chan struct{}
	sending   sync.WaitGroup
	receiving sync.WaitGroup
}

// Ping pings what [Serve] serves at an address, from the namespace. The address may
// go away and come back: no socket is bound to it.
func Ping(ns *lab.NetNS, to netip.AddrPort) (*Pinger, error) {
	p := &Pinger{record: newRecord(), quit: make(chan struct{})}
	err := ns.Do(func() (err error) {
		p.socket, err = net.ListenUDP("udp", nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.sending.Go(func() { p.send(to) })
	p.receiving.Go(p.receive)
	return p, nil
}

func (p *Pinger) send(to netip.AddrPort) {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.quit:
			return
		}
		// What the kernel refuses to send is lost.
		_, _ = p.socket.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, p.next()), to)
	}
}

func (p *Pinger) receive() {
	b := make([]byte, 64)
	for {
		n, _, err := p.socket.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			p.answered(binary.BigEndian.Uint64(b))
		}
	}
}

// Stop ends the pinging and returns what it has seen.
func (p *Pinger) Stop() Result {
	close(p.quit)
	p.sending.Wait()
	p.settle()
	_ = p.socket.Close()
	p.receiving.Wait()
	return p.packets()
}
