// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"errors"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// OpenTunnel returns the holder's tunnel, made for a node of this id if there is none. It
// fails with nserr.Unsupported if the holder is of a time before there were any.
func (c *Client) OpenTunnel(ctx context.Context, node uint32) (Tunnel, error) {
	answer, err := c.making(ctx, &request{Op: opTunnel, Node: node}, nil)
	if err != nil {
		return Tunnel{}, ofOldHolder(err)
	}
	if answer.Tunnel == nil {
		return Tunnel{}, nserr.BadAnswer.Errorf("WireGuard holder made no tunnel")
	}
	return *answer.Tunnel, nil
}

// AddWire makes the wire with its tag, name, MTU, payload and local number in namespace
// ns. It leads nowhere yet. One that is there already is left as it is. It fails with
// nserr.NameTaken when the namespace has another interface of that name.
func (c *Client) AddWire(ctx context.Context, ns *netns.Handle, w Wire) error {
	req := &request{Op: opWire, Tag: w.Tag, Name: w.Name, MTU: w.MTU, Ethernet: w.Ethernet, Local: w.Local}
	_, err := c.making(ctx, req, ns.File())
	return err
}

// PointWire has the wire with this tag lead to that of another node. It returns where it
// led to before, nil if nowhere.
func (c *Client) PointWire(ctx context.Context, tag string, peer, remote uint32) (*Left, error) {
	answer, err := c.call(ctx, &request{Op: opPoint, Tag: tag, Peer: peer, Remote: remote}, nil)
	if err != nil {
		return nil, err
	}
	return answer.Left, nil
}

// Wires returns the tunnel and its wires ordered by tag, or with a tag that wire alone, and
// what has gone through it. The tunnel is zero if there is none: none was made, no holder
// runs, or it is of a time before there were any.
func (c *Client) Wires(ctx context.Context, tag string) (Tunnel, []Wire, error) {
	answer, err := c.call(ctx, &request{Op: opWires, Tag: tag}, nil)
	if notRunning(err) || errors.Is(err, nserr.BadRequest) {
		return Tunnel{}, nil, nil
	}
	if err != nil || answer.Tunnel == nil {
		return Tunnel{}, nil, err
	}
	return *answer.Tunnel, answer.Wires, nil
}

// ofOldHolder says what it means that a holder does not know an operation.
func ofOldHolder(err error) error {
	if errors.Is(err, nserr.BadRequest) {
		return nserr.Unsupported.Errorf("the WireGuard holder is of an earlier version: %w", err)
	}
	return err
}
