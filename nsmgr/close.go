// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
)

// Close closes a connection and what is behind it (protocol.md §2.9). Closing
// what is not known succeeds. Whatever the next hop answers, the connection is
// gone here.
func (m *Manager) Close(ctx context.Context, c *networkservice.Connection) (*emptypb.Empty, error) {
	call, err := m.hop.Admit(ctx, c)
	if err != nil {
		return nil, err
	}
	err = m.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		if t.Record == nil {
			return m.passOn(ctx, call)
		}
		if err := t.Record.binding.Check(call); err != nil {
			return err
		}
		m.drop(ctx, t, call, "closed")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// passOn sends the Close of a connection that is not known here to the forwarder
// that its path names: this manager has restarted since, the forwarder may not
// have. It checks for itself whose connection it is. One that has yet to register again
// is waited for: nobody would tell it later.
func (m *Manager) passOn(ctx context.Context, call *hop.Call) error {
	name := nextSegment(call.Conn)
	if name == "" {
		return nil
	}
	m.awaitForwarder(ctx, call.Conn)
	for _, f := range m.locals.forwarders(time.Now()) {
		if f.nse.GetName() != name {
			continue
		}
		p := m.config.Peers.Get(f.url)
		defer p.Release()
		if err := hop.CloseAt(ctx, p, call.Conn); err != nil {
			m.log.Warn("close of an unknown connection not passed on", "connection", call.Conn.GetId(), "forwarder", name, "error", err)
		}
	}
	return nil
}

// expire closes a connection that nobody refreshed in time.
func (m *Manager) expire(ctx context.Context, id string) {
	_ = m.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if t.Expired() {
			m.drop(ctx, t, nil, "expired")
		}
		return nil
	})
}

// drop closes the path behind this hop and forgets the connection. What nobody waits
// for is closed in the background: the next hop may be dead, or refuse since the tokens
// have expired by now. It has a timer, too.
func (m *Manager) drop(ctx context.Context, t *conn.Turn[wire], call *hop.Call, why string) {
	forwarder := t.Record.forwarder
	if call == nil {
		t.Record.next.CloseSoon(ctx, nil, 0, m.cleanup)
	} else if err := t.Record.next.Close(ctx, call); err != nil {
		m.log.Warn("next hop did not close", "connection", t.ID, "forwarder", forwarder, "error", err)
	}
	t.Record = nil
	m.ruled.forget(t.ID)
	m.monitor.Delete(t.ID)
	m.log.Info("connection "+why, "connection", t.ID, "forwarder", forwarder)
}
