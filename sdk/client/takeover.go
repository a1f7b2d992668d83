// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
)

// takeOverTimeout bounds the look for an earlier life's connection; without an
// answer the wire is made anew.
const takeOverTimeout = 2 * time.Second

// takeOver reports whether the manager knows the connection from an earlier life
// of this client. The wire goes on from there: the Request that follows is a
// refresh, and the interface stays as it is (protocol.md §5.2, "NSC container
// restart").
//
// The manager shows an identity its own connections only, and binds each to the
// identity that opened it, so nobody else's can be taken over.
func (w *Wire) takeOver(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, takeOverTimeout)
	defer cancel()
	stream, err := networkservice.NewMonitorConnectionClient(w.client.manager.Conn()).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{
		PathSegments: []*networkservice.PathSegment{{Name: w.client.config.Name, Id: w.id}},
	})
	if err != nil {
		return false
	}
	initial, err := stream.Recv()
	if err != nil {
		return false
	}
	for _, c := range initial.GetConnections() {
		if w.resumes(c) {
			w.client.log.Info("taking over the wire of an earlier life", "connection", w.id, "endpoint", c.GetNetworkServiceEndpointName())
			return true
		}
	}
	return false
}

// resumes makes c, as the manager sees it, what the wire asks for, if it is the
// same wish by the same client.
func (w *Wire) resumes(c *networkservice.Connection) bool {
	wanted := w.Connection()
	segments := c.GetPath().GetPathSegments()
	if c.GetPath().GetIndex() != 1 || len(segments) < 2 ||
		segments[0].GetId() != w.id || segments[0].GetName() != w.client.config.Name ||
		c.GetNetworkService() != wanted.GetNetworkService() {
		return false
	}
	if w.pinned != "" && w.pinned != c.GetNetworkServiceEndpointName() {
		return false
	}
	c = proto.Clone(c).(*networkservice.Connection)
	c.Id, c.Path.Index = w.id, 0
	c.Labels = wanted.GetLabels()
	c.State = networkservice.State_UP
	// The namespace is this life's, and so is the wish for a name.
	have, want := c.GetMechanism().GetParameters(), w.prefs[0].GetParameters()
	if have["inodeURL"] != want["inodeURL"] || want["name"] != "" && want["name"] != have["name"] {
		c.Mechanism = nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = c
	return true
}
