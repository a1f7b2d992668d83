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
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/internal/profile"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// profileConfig are the settings of 'nsm profile'.
type profileConfig struct {
	managerConfig
	Of             string `flag:"of" default:"daemon" choices:"daemon,holder,authority" help:"whose: of the daemon at --connect-to; of the process that has this node's userspace WireGuard; of what gives out this node's identities, the authority or an agent of it"`
	HolderSocket   string `flag:"holder-socket" env:"NSM_HOLDER_SOCKET" help:"path of that process's socket, wireguard.sock in --state-dir of the forwarder; default that of 'nsm up', /var/lib/nsm/wireguard.sock, or where nobody is there that of 'nsm forwarder', /var/lib/nsm/forwarder/wireguard.sock"`
	IdentitySocket string `flag:"identity-socket" env:"NSM_IDENTITY_SOCKET" default:"unix:///var/lib/networkservicemesh/identity.sock" help:"URL of the authority's or agent's socket"`
	Seconds        uint32 `flag:"seconds" default:"0" help:"for how long to record, at most 300; 0 = what there is now or has been since the process began, 10 s of cpu, mutex, block and trace"`
	File           string `flag:"file" short:"o" help:"file to write, - for standard output; default KIND.pprof, or trace.out"`
}

// holderSockets are where a holder may be unless somebody says where: of 'nsm up' and of
// 'nsm forwarder', as their --state-dir is by default.
var holderSockets = []string{"/var/lib/nsm/wireguard.sock", "/var/lib/nsm/forwarder/wireguard.sock"}

// profileFlags are the flags of 'nsm profile' that matter for one choice of --of alone.
var profileFlags = []struct{ name, of string }{
	{"connect-to", "daemon"}, {"dial-timeout", "daemon"}, {"max-token-lifetime", "daemon"},
	{"holder-socket", "holder"}, {"identity-socket", "authority"},
}

func newProfile(a *app) *cobra.Command {
	var cfg profileConfig
	c := &cobra.Command{
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
			"Root of a node may do this, its daemons, and those that --operators names there. With\n" +
			"--of holder it is that of the process that has this node's userspace WireGuard, with\n" +
			"--of authority that of what gives out its identities, the authority or an agent. Both\n" +
			"answer the user that they run as, mostly root. With 'nsm up' all but the holder is one\n" +
			"process.\n\n" +
			"No wire is touched; the process is a few per cent slower meanwhile, with trace more.",
		Example: "  nsm profile --seconds 30 && go tool pprof -http localhost: cpu.pprof\n" +
			"  nsm profile allocs --seconds 10\n" +
			"  nsm profile heap --connect-to tcp://10.0.0.1:5002   # a registry\n" +
			"  nsm profile --of holder --seconds 30",
		GroupID:           groupOperate,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(profile.Kinds, cobra.ShellCompDirectiveNoFileComp),
	}
	a.command(c, &cfg, func(ctx context.Context, args []string) error {
		for _, f := range profileFlags { // what the environment says is meant for other commands, too
			if f.of != cfg.Of && c.Flags().Changed(f.name) {
				return &usageError{c, fmt.Errorf("--%s is of no use with --of %s: leave it out, or ask with --of %s", f.name, cfg.Of, f.of)}
			}
		}
		kind := "cpu"
		if len(args) > 0 {
			kind = args[0]
		}
		if err := profile.Check(kind, int(cfg.Seconds)); err != nil {
			return err // whoever listens, and if nobody does
		}
		to := cfg.managerConfig
		to.RequestTimeout += time.Duration(max(cfg.Seconds, profile.UsualSeconds)) * time.Second
		save := func(ctx context.Context, c adminv1.AdminClient) error {
			stream, err := c.Profile(ctx, &adminv1.ProfileRequest{Kind: kind, Seconds: cfg.Seconds})
			if err != nil {
				return err
			}
			return a.saveProfile(func() ([]byte, error) {
				piece, err := stream.Recv()
				return piece.GetData(), err
			}, kind, cfg.File)
		}
		if cfg.Of == "daemon" {
			return a.call(ctx, to, save)
		}
		ctx, cancel := context.WithTimeout(ctx, to.RequestTimeout)
		defer cancel()
		if cfg.Of == "authority" {
			return callAuthority(ctx, cfg.IdentitySocket, save)
		}
		sockets := holderSockets
		if cfg.HolderSocket != "" {
			sockets = []string{cfg.HolderSocket}
		}
		data, err := callHolder(ctx, sockets, kind, int(cfg.Seconds))
		if err != nil {
			return err
		}
		return a.saveProfile(func() ([]byte, error) {
			if data == nil {
				return nil, io.EOF
			}
			piece := data
			data = nil
			return piece, nil
		}, kind, cfg.File)
	})
	complete(c, "of", "daemon", "holder", "authority")
	return c
}

// callAuthority runs f with what a socket serves on which identities are given out.
func callAuthority(ctx context.Context, socket string, f func(context.Context, adminv1.AdminClient) error) error {
	conn, err := rpc.Dial(socket, rpc.DialOptions{Credentials: insecure.NewCredentials()}) // the kernel says who asks
	if err != nil {
		return err
	}
	err = f(ctx, adminv1.NewAdminClient(conn))
	if status.Code(err) == codes.Unimplemented {
		err = nserr.PeerDown.Errorf("what answers at %s has no profiles: %w", socket, err).
			WithFix("name the socket of 'nsm authority' or 'nsm up' with --identity-socket, and see that it is of this version")
	}
	return errors.Join(err, conn.Close())
}

// callHolder has the holder record a profile that is at the first of the sockets at which
// there is one.
func callHolder(ctx context.Context, sockets []string, kind string, seconds int) (_ []byte, err error) {
	for _, socket := range sockets {
		data, failed := holder.Visit(socket).Profile(ctx, kind, seconds)
		if !errors.Is(failed, nserr.PeerDown) {
			return data, failed
		}
		ended := !errors.Is(failed, os.ErrNotExist) && !errors.Is(failed, unix.ECONNREFUSED)
		if err != nil {
			failed = fmt.Errorf("%w; %w", err, failed) // in one line
		}
		if err = failed; ended { // it was there, and nobody wants a profile of another one
			break
		}
	}
	return nil, nserr.PeerDown.Errorf("no profile: %w", err).
		WithFix("see whether 'nsm wireguard-holder' runs: only while there are wires by WireGuard in userspace; if it does, name the path after its --socket with --holder-socket")
}

// saveProfile writes a profile to a file, piece by piece until io.EOF. None is made
// before the first piece of it has come.
func (a *app) saveProfile(next func() ([]byte, error), kind, name string) (err error) {
	piece, err := next()
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
		if _, err := out.Write(piece); err != nil {
			return err
		}
		if piece, err = next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
