// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/profile"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
)

// profileConfig are the settings of 'nsm profile'.
type profileConfig struct {
	managerConfig
	Seconds uint32 `flag:"seconds" default:"0" help:"for how long to record, at most 300; 0 = what there is now or has been since the process began, 10 s of cpu, mutex, block and trace"`
	File    string `flag:"file" short:"o" help:"file to write, - for standard output; default KIND.pprof, or trace.out"`
}

func newProfile(a *app) *cobra.Command {
	var cfg profileConfig
	return a.command(&cobra.Command{
		Use:   "profile [KIND]",
		Short: "Record what a daemon spends time and memory on",
		Long: "Record what a daemon spends time and memory on, in the form of 'go tool pprof':\n\n" +
			"  cpu         where it computes, the default\n" +
			"  heap        who holds memory; with --seconds, how that has changed meanwhile\n" +
			"  allocs      who has allocated it\n" +
			"  goroutine   what its goroutines do\n" +
			"  mutex       who lets others wait for locks\n" +
			"  block       who waits, for what\n" +
			"  trace       everything, for 'go tool trace'\n\n" +
			"With --connect-to it is that of the manager, registry or forwarder that listens there.\n" +
			"Root of a node may do this, its daemons, and those that --operators names there. No\n" +
			"wire is touched; the daemon is a few per cent slower meanwhile, with trace more.",
		Example: "  nsm profile --seconds 30 && go tool pprof -http localhost: cpu.pprof\n" +
			"  nsm profile allocs --seconds 10\n" +
			"  nsm profile heap --connect-to tcp://10.0.0.1:5002   # a registry",
		GroupID:           groupOperate,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(profile.Kinds, cobra.ShellCompDirectiveNoFileComp),
	}, &cfg, func(ctx context.Context, args []string) error {
		kind := "cpu"
		if len(args) > 0 {
			kind = args[0]
		}
		if err := profile.Check(kind, int(cfg.Seconds)); err != nil {
			return err // whoever listens, and if nobody does
		}
		to := cfg.managerConfig
		to.RequestTimeout += time.Duration(max(cfg.Seconds, profile.UsualSeconds)) * time.Second
		return a.call(ctx, to, func(ctx context.Context, c adminv1.AdminClient) error {
			stream, err := c.Profile(ctx, &adminv1.ProfileRequest{Kind: kind, Seconds: cfg.Seconds})
			if err != nil {
				return err
			}
			return a.saveProfile(stream, kind, cfg.File)
		})
	})
}

// saveProfile writes a profile to a file. None is made before the first piece of it has
// come.
func (a *app) saveProfile(stream grpc.ServerStreamingClient[adminv1.ProfileChunk], kind, name string) (err error) {
	piece, err := stream.Recv()
	if err != nil {
		return err
	}
	out := io.Writer(a.out)
	if name != "-" {
		tool, usual := "pprof -http localhost:", kind+".pprof"
		if kind == "trace" {
			tool, usual = "trace", "trace.out"
		}
		name = cmp.Or(name, usual)
		file, err := os.Create(name)
		if err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, file.Close()); err == nil {
				fmt.Fprintf(a.out, "%s is written; see it with 'go tool %s %s'\n", name, tool, name)
			}
		}()
		out = file
	}
	for {
		if _, err := out.Write(piece.GetData()); err != nil {
			return err
		}
		if piece, err = stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
