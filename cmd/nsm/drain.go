// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// drainConfig are the settings of 'nsm drain'.
type drainConfig struct {
	managerConfig
	Timeout time.Duration `flag:"timeout" default:"1m" help:"how long to wait for the last wire"`
	Undo    bool          `flag:"undo" help:"give what was drained to clients again"`
}

func newDrain(a *app) *cobra.Command {
	drain := &cobra.Command{
		Use:   "drain",
		Short: "Move wires away from an endpoint or a node before it stops",
		Long: "Move wires away before an endpoint or a node stops: no client gets it any more,\n" +
			"and those who have it are asked to take another endpoint of the service. Each has\n" +
			"its new path before the old one is closed. The command ends when no wire is left.\n" +
			"What is drained stays so until --undo, or until it or the node's manager ends.",
		Example: "  nsm drain endpoint db-1 && systemctl stop db-1\n  nsm drain node b --timeout 5m",
		GroupID: groupOperate,
		RunE:    group,
	}
	var endpoint, node drainConfig
	drain.AddCommand(
		a.command(&cobra.Command{
			Use:               "endpoint NAME",
			Aliases:           endpointKind().aliases,
			Short:             "Move the wires of one endpoint to others of its service",
			Example:           "  nsm drain endpoint db-1\n  nsm drain endpoint db-1 --undo",
			Args:              cobra.ExactArgs(1),
			ValidArgsFunction: completeNames(a, &endpoint.managerConfig, endpointKind()),
		}, &endpoint, func(ctx context.Context, args []string) error {
			return a.drain(ctx, endpoint, "endpoint "+args[0], &adminv1.DrainRequest{Endpoints: args, Undo: endpoint.Undo},
				func(ctx context.Context, c adminv1.AdminClient) ([]*adminv1.Node, error) {
					return nodesOfEndpoint(ctx, c, args[0], endpoint.Undo)
				})
		}),
		a.command(&cobra.Command{
			Use:               "node NAME",
			Aliases:           nodeKind().aliases,
			Short:             "Move the wires of all endpoints of a node to those of other nodes",
			Example:           "  nsm drain node b --timeout 5m\n  nsm drain node b --undo",
			Args:              cobra.ExactArgs(1),
			ValidArgsFunction: completeNames(a, &node.managerConfig, nodeKind()),
		}, &node, func(ctx context.Context, args []string) error {
			return a.drain(ctx, node, "node "+args[0], &adminv1.DrainRequest{Undo: node.Undo},
				func(ctx context.Context, c adminv1.AdminClient) ([]*adminv1.Node, error) {
					return nodesNamed(ctx, c, args[0])
				})
		}),
	)
	return drain
}

// drain asks the managers of the nodes that where returns, until one has what is meant,
// and tells how it goes.
func (a *app) drain(ctx context.Context, cfg drainConfig, what string, req *adminv1.DrainRequest, where func(context.Context, adminv1.AdminClient) ([]*adminv1.Node, error)) error {
	var nodes []*adminv1.Node
	err := a.call(ctx, cfg.managerConfig, func(ctx context.Context, c adminv1.AdminClient) (err error) {
		nodes, err = where(ctx, c)
		return err
	})
	if err != nil {
		return err
	}
	var failed error
	for _, n := range nodes {
		to := cfg.managerConfig
		if !n.GetLocal() {
			to.ConnectTo = n.GetUrl()
		}
		to.RequestTimeout = cfg.Timeout
		err := a.drainAt(ctx, to, what, req)
		if !errors.Is(err, nserr.UnknownEndpoint) && !errors.Is(err, nserr.PeerDown) {
			return err
		}
		if failed == nil || errors.Is(err, nserr.PeerDown) { // that one may have it
			failed = err
		}
	}
	return failed
}

// drainAt asks one manager.
func (a *app) drainAt(ctx context.Context, to managerConfig, what string, req *adminv1.DrainRequest) error {
	start := time.Now()
	return a.call(ctx, to, func(ctx context.Context, c adminv1.AdminClient) error {
		stream, err := c.Drain(ctx, req)
		if err != nil {
			return err
		}
		var last *adminv1.DrainProgress
		for {
			p, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return a.drainFailed(ctx, what, last, err)
			}
			if p.GetWires() > 0 && (last == nil || last.GetWires() != p.GetWires() || len(last.GetStuck()) != len(p.GetStuck())) {
				fmt.Fprintf(a.err, "nsm: %s: %s left%s\n", what, wires(p.GetWires()), stuckText(p.GetStuck()))
			}
			last = p
		}
		if req.GetUndo() {
			_, err = fmt.Fprintf(a.out, "%s is for clients again\n", what)
		} else {
			_, err = fmt.Fprintf(a.out, "%s is drained: %s moved in %v; it may stop now\n", what, wires(last.GetMoved()), time.Since(start).Round(10*time.Millisecond))
		}
		return err
	})
}

// drainFailed says what is left when the time is over.
func (a *app) drainFailed(ctx context.Context, what string, last *adminv1.DrainProgress, err error) error {
	if ctx.Err() == nil || last == nil {
		return err
	}
	return nserr.TimedOut.Errorf("%s is not drained: %s left%s", what, wires(last.GetWires()), stuckText(last.GetStuck())).
		WithFix("see with 'nsm get endpoints' whether another endpoint fits these clients; it stays drained, take it back with --undo")
}

func wires(n uint32) string {
	if n == 1 {
		return "1 wire"
	}
	return fmt.Sprintf("%d wires", n)
}

// stuckText names a few wires whose clients do not move.
func stuckText(ids []string) string {
	const most = 5
	switch {
	case len(ids) == 0:
		return ""
	case len(ids) > most:
		return fmt.Sprintf("; asked for seconds: %s and %d more", strings.Join(ids[:most], ", "), len(ids)-most)
	}
	return "; asked for seconds: " + strings.Join(ids, ", ")
}

func nodesNamed(ctx context.Context, c adminv1.AdminClient, name string) ([]*adminv1.Node, error) {
	found, err := collect(ctx, nodeKind(), c, &adminv1.Filter{Name: name})
	if err == nil && len(found) == 0 {
		err = nserr.UnknownNode.Errorf("node %q is not found", name)
	}
	return found, err
}

// nodesOfEndpoint returns the node of an endpoint. One that is drained is known to
// its own node only: then it may be any.
func nodesOfEndpoint(ctx context.Context, c adminv1.AdminClient, name string, drained bool) ([]*adminv1.Node, error) {
	found, err := collect(ctx, endpointKind(), c, &adminv1.Filter{Name: name})
	switch {
	case err != nil:
		return nil, err
	case len(found) > 0:
		return nodesNamed(ctx, c, found[0].GetNode())
	case drained:
		return collect(ctx, nodeKind(), c, &adminv1.Filter{})
	}
	return nil, nserr.UnknownEndpoint.Errorf("endpoint %q is not found", name).WithFix("list endpoints with 'nsm get endpoints'")
}
